"""Quantisation: weights and activations in few bits."""
