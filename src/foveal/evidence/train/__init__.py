"""Evidence of foveal.train."""
