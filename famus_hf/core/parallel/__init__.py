"""What processes tell each other, and tensors that are spread over them."""
