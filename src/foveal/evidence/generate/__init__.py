"""Evidence for foveal.generate."""
