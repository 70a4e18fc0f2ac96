"""Pruning: weights, channels, heads and blocks that go."""
