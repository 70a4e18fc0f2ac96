"""Low rank: weights as products of two thinner matrices."""
