"""What a step asks of a GPU, and what time that takes, without one: counted bytes and products, compiled kernels."""
