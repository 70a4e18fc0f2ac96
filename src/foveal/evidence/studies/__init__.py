"""Rows without code of their own: theory, surveys, benchmarks and applications; a file has METHOD and CLAIMS."""
