"""VITS's decoder, the flow and HiFi-GAN, by other means than ONNX Runtime.

weights    names, and what follows from shapes
tiled      as chains of convolutions, by AMX or AVX512_BF16: `flow` and `parts.hifi_gan`
rewrite    in PyTorch: for all other processors, and for those who ask for float32
backends   both, over one file
"""

from ..weight_file import Weights, save
from .backends import FILE, backends
from .weights import WINDOW, reach

__all__ = ["FILE", "WINDOW", "Weights", "backends", "reach", "save"]
