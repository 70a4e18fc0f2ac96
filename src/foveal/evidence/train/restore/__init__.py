"""Evidence of foveal.train.restore."""
