"""Evidence for foveal.train."""
