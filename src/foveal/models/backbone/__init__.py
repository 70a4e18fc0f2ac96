"""Networks that see: backbones with timm's interface. `foveal.models.timm.register` puts them on timm's list."""
