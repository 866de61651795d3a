"""Networks: trunks map images and latents to features, heads map features to distributions."""
