"""Networks for image restoration: super-resolution."""
