"""Evidence of foveal.models.sequence."""
