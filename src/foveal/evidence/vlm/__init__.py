"""Evidence for foveal.vlm."""
