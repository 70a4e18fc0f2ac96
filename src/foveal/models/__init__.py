"""Whole networks, one file per paper, found by name."""

from foveal.models.registry import create_model, list_models, load_model

__all__ = ["create_model", "list_models", "load_model"]
