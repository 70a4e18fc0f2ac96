"""Evidence for foveal.models.restore."""
