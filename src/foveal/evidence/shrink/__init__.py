"""Evidence of foveal.shrink."""
