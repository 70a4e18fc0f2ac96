"""Networks that see: backbones with timm's interface. Importing this package registers them with timm."""

from foveal.models.backbone._timm import register

register()
