"""Evidence for foveal.ops."""
