"""Training: pictures, the fit loop, optimisers, recipes."""
