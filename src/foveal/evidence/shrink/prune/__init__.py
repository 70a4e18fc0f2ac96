"""Evidence for pruning."""
