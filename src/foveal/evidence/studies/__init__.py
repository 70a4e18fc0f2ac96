"""Rows without code of their own: theories, surveys, benchmarks and applications; a file holds METHOD and CLAIMS."""
