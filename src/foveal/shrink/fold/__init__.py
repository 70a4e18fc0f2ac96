"""Folding: layers that become one, with the same outputs."""
