"""Complete networks, one file per paper, built by name."""

from foveal.models.registry import create_model, list_models, load_model

__all__ = ["create_model", "list_models", "load_model"]
