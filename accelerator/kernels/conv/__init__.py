"""A codec's layers: minimal filters, dense and pointwise convolutions, activations, in parts over time."""
