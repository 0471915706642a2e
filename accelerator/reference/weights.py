"""Weights: random ones made fast, and one safetensors file with the configuration inside.

Modules are built on the meta device (no memory, no default initialisation) and each parameter is then filled once.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .codec import Codec, DACDecoder, ISTFTDecoder, STFTEncoder, inverse_stft_basis, stft_basis
from .config import EngineConfig, from_json, to_json
from .convolution import CausalConv, ResidualUnit
from .errors import ReferenceEngineError
from .language_model import LanguageModel
from .transformer import Block, WindowedTransformer

__all__ = ["build", "load_weights", "random_weights", "save_weights"]

_FORMAT = "accelerator-reference-1"
_SCALE = ".int8_scale"


def build(config: EngineConfig) -> tuple[LanguageModel, Codec]:
    """Both modules on the meta device: names and shapes without memory. `_restore_constants` follows the weights."""
    with torch.device("meta"):
        return LanguageModel(config.language_model).eval(), Codec(config.codec).eval()


def random_weights(config: EngineConfig, seed: int) -> tuple[LanguageModel, Codec]:
    """Both modules with seeded random float32 weights that keep signals in range; the same seed, the same weights."""
    language_model, codec = build(config)
    generator = torch.Generator().manual_seed(seed)
    for module in (language_model, codec):
        module.to_empty(device="cpu").requires_grad_(False)
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                _fill(owner, name, parameter, generator)
    _shape_language_model(language_model)
    _shape_codec(codec)
    _restore_constants(codec)
    return language_model, codec


def _restore_constants(codec: Codec) -> None:
    """What is computed rather than stored, and was lost on the meta device."""
    if isinstance(codec.decoder, ISTFTDecoder):
        codec.decoder.basis = inverse_stft_basis(codec.decoder.config.n_fft)
    if isinstance(codec.encoder, STFTEncoder):
        codec.encoder.basis = stft_basis(codec.encoder.config.n_fft)


def _fill(owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if isinstance(owner, nn.Embedding):
        parameter.normal_(0.0, 1.0, generator=generator)
    elif parameter.ndim > 1 and name == "weight":  # variance is kept: one over the inputs that meet in an output
        fan_in = parameter[0].numel()
        if isinstance(owner, nn.ConvTranspose1d):
            fan_in = parameter.shape[0] * parameter.shape[2] // owner.stride[0]
        parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    else:  # norms, snakes and scales around one, biases around zero: noisy, so that a lost one is noticed
        parameter.normal_(0.0 if name == "bias" else 1.0, 0.05, generator=generator)


def _shape_language_model(model: LanguageModel) -> None:
    for layers in (model.layers, model.fast_layers):
        for layer in cast(Iterable[Block], layers):
            for projection in (layer.attention.out, layer.ffn.down):
                projection.weight.mul_((2 * len(layers)) ** -0.5)  # the residual stream does not grow with depth
    # clear preferences, as a trained model has; a tied head's rows are as long as embeddings
    model.output_weight.mul_(2.0 if model.output is not None else 2.0 * model.config.slow.dim**-0.5)
    model.fast_output.weight.mul_(2.0)
    model.output_weight[model.config.im_end].mul_(0.01)  # a middling logit: random speech goes on to its bound


def _shape_codec(codec: Codec) -> None:
    for module in codec.modules():
        if isinstance(module, ResidualUnit):
            cast(CausalConv, module.block[-1]).conv.weight.mul_(0.3)
        elif isinstance(module, WindowedTransformer):  # a gentle refinement, as under a trained layer scale
            for layer in cast(Iterable[Block], module.layers):
                layer.attention.out.weight.mul_(0.05)
                layer.ffn.down.weight.mul_(0.05)
    if isinstance(codec.decoder, DACDecoder):
        cast(CausalConv, codec.decoder.last[-1]).conv.weight.mul_(0.05)
    else:  # magnitudes of white noise at a tenth of full scale
        n_fft = codec.decoder.config.n_fft
        codec.decoder.head.weight[: n_fft // 2 + 1].mul_(0.5)
        codec.decoder.head.bias[: n_fft // 2 + 1].add_(math.log(0.1 * n_fft**0.5))


def save_weights(
    path: str | os.PathLike[str],
    config: EngineConfig,
    language_model: LanguageModel,
    codec: Codec,
    *,
    eight_bits: bool = False,
) -> None:
    """Write everything to one safetensors file, atomically.

    eight_bits: round the language model's matrices to int8, with float32 `NAME.int8_scale` [rows, 1].
    """
    tensors = {
        f"{part}.{name}": tensor.contiguous()
        for part, module in (("language_model", language_model), ("codec", codec))
        for name, tensor in module.state_dict().items()
    }
    for name in [name for name, tensor in tensors.items() if name.startswith("language_model.") and tensor.ndim == 2]:
        if eight_bits:
            tensors[name], tensors[name + _SCALE] = _rounded(tensors[name])
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "config": to_json(config)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # not its maker's alone, as temporary files are
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and float32 [rows, 1], whose product is near the matrix."""
    floats = matrix.float()
    scale = floats.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (floats / scale).round().to(torch.int8), scale


def load_weights(path: str | os.PathLike[str]) -> tuple[EngineConfig, LanguageModel, Codec]:
    """Read `save_weights`' file. Raises ReferenceEngineError if it is missing, damaged or misfits its configuration."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ReferenceEngineError(f"{path} is not a file of this engine's save()")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise ReferenceEngineError(f"cannot read the weights {path}: {error}") from error
    config = from_json(metadata["config"])
    language_model, codec = build(config)
    for part, module in (("language_model", language_model), ("codec", codec)):
        own = {
            name[len(part) + 1 :]: tensor * tensors[name + _SCALE] if name + _SCALE in tensors else tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(f"{part}.") and not name.endswith(_SCALE)
        }
        try:
            module.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ReferenceEngineError(
                f"{path} does not hold the weights its configuration asks for: {error}"
            ) from error
        module.requires_grad_(False)
    _restore_constants(codec)
    return config, language_model, codec
