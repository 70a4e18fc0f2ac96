"""Evidence for foveal.evaluate."""
