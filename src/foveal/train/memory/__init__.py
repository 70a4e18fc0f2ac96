"""Training that keeps less for its backward pass."""
