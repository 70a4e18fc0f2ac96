"""Evidence for what works on pictures as arrays."""
