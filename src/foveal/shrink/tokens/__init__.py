"""Token reduction: networks that drop or merge tokens between their blocks."""
