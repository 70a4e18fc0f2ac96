"""Evidence of foveal.models.restore."""
