"""Evidence for foveal.shrink.tokens."""
