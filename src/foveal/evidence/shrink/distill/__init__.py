"""Evidence for foveal.shrink.distill."""
