"""Networks for dense prediction: segmentation."""
