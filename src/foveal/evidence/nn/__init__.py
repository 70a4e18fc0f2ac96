"""Evidence for the layers of `foveal.nn` that are methods of the literature."""
