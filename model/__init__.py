"""LSeg, the language-driven segmentation network: tensors in, tensors out."""
