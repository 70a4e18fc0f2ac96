"""Layers replaced by cheaper operators of the same shapes."""
