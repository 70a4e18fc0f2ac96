"""Evidence for foveal.shrink.lowrank."""
