"""Networks that read a picture as one long sequence, or a film frame by frame: what selective scans came from."""
