"""The linear layers of an ensemble, a part of other operations: kernels only."""
