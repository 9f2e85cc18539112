"""A planned GrokTransformer's loss and gradient as a handful of Triton launches; `nn.TransformerStep` uses it."""
