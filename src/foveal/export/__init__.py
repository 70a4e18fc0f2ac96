"""Export of a trained network to ONNX and to a bundle, with a parity report."""
