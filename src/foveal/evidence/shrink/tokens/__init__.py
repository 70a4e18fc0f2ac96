"""Evidence of foveal.shrink.tokens."""
