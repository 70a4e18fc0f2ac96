"""Evidence for foveal.adapt."""
