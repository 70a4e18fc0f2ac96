"""Networks that read an image as one long sequence, or a video frame by frame: the predecessors of selective scans."""
