"""A codec's layers: minimal filters, dense and pointwise products, activations, in parts over time."""
