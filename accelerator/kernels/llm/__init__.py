"""A language model's step: attention, quantized matrix products, the draw of codes, and the threads that share it."""
