"""Evidence for the blocks of `foveal.nn.fusion`."""
