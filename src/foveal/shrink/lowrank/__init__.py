"""Low-rank factorisation of linear layers and convolutions."""
