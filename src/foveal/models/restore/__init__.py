"""Networks that restore pictures: super-resolution."""
