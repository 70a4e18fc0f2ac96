"""Fewer tokens: networks that drop or join them on the way."""
