"""Evidence of foveal.models."""
