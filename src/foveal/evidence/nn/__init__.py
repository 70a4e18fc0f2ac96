"""Evidence for layers of `foveal.nn`."""
