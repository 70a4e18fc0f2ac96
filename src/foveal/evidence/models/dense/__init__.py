"""Evidence of foveal.models.dense."""
