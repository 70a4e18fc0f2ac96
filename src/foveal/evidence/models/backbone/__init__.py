"""Evidence for foveal.models.backbone."""
