"""Evidence for foveal.train.restore."""
