"""Training of networks that restore pictures: how their inputs are damaged."""
