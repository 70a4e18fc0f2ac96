"""Evidence of foveal.models.backbone."""
