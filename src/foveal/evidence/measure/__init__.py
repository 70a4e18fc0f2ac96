"""Evidence for foveal.measure."""
