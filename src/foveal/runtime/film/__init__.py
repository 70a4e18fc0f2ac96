"""Films: frames by the same engines as pictures, everything else copied. Needs the extra `video` (PyAV)."""
