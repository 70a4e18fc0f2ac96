"""Evidence for foveal.models."""
