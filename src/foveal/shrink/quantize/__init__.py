"""Quantisation: weights and intermediate values in few bits."""
