"""Evidence for foveal.models.sequence."""
