"""Evidence for foveal.shrink."""
