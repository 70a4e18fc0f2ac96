"""Evidence for foveal.shrink.quantize."""
