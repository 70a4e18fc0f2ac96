"""Evidence of foveal.shrink.quantize."""
