"""Evidence for foveal.shrink.prune."""
