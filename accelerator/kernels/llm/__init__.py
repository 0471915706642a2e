"""A language model's step: attention, quantized products, the draw of codes, and the threads that share it."""
