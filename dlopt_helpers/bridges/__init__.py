"""The subject's rules as optimisers of PyTorch and of Keras."""
