"""What a network takes: examples as tensors, augmented and in batches."""
