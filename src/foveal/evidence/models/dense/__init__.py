"""Evidence for foveal.models.dense."""
