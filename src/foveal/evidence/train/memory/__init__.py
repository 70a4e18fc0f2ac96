"""Evidence for `foveal.train.memory`."""
