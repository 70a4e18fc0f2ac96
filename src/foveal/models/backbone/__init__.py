"""Backbones with timm's interface. `foveal.models.timm.register` adds them to timm's model registry."""
