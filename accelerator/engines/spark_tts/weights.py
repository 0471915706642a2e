"""What is stored of BiCodec's decoding half for compiled kernels: one file, which `detokenizer` reads.

    table                       [codes, C]: a semantic code's embedding, behind the linear layers that follow
    voices, speaker.*           codes of who speaks -> d_vector [D]
    condition.*                 d_vector -> scale and shift of each adaptive norm, one after the other
    backbones.<i>.*             Vocos's, see `parts.vocos`; the last one's norms are adaptive
    out.*                       the prenet's last layer
    wave.*                      DAC's decoder, see `parts.wave_decoder`

Blocks that would sample, and do not, multiply what passes them by three: that is in the layers before them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ...parts.codec_file import EPS, CodecFile

__all__ = ["save"]

_TRIPLED = 3.0


def save(audio: nn.Module, path: Path) -> None:
    """Write the file. audio: an `Audio` that `traceable.made` made. Raises ExportError for another codec."""
    try:
        with torch.no_grad():
            _save(audio, path)
    except (AttributeError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ExportError(f"its BiCodec is not built as Spark-TTS's: {error}") from error


def _save(audio: Any, path: Path) -> None:
    file, prenet = CodecFile(), audio.prenet
    if prenet.use_tanh_at_final:
        raise ValueError("a prenet that ends in tanh")
    config: dict[str, Any] = {"eps": EPS, "backbones": []}
    before = []
    for sampling, backbone in prenet.downsample:
        if (sampling.upsample_scale, sampling.downsample_scale) != (1, 1):
            raise ValueError("a prenet that samples")
        before.append(backbone)
    file.tensors["table"] = _table(audio.quantizer, prenet.linear_pre, _TRIPLED if before else 1.0)
    for i, backbone in enumerate((*before, prenet.vocos_backbone)):
        factor = _TRIPLED if i + 1 < len(before) else 1.0
        config["backbones"].append(_backbone(file, f"backbones.{i}", backbone, factor))
    file.linear("out", prenet.linear.weight, prenet.linear.bias)
    _speaker(file, audio.speaker, prenet.vocos_backbone)
    wave = CodecFile()
    ups, config["dilations"] = wave.decoder(audio.decoder.model)
    config["ups"] = [[int(up.stride[0]), int(up.kernel_size[0]), int(up.padding[0])] for up in ups]
    if any(
        size - 2 * pad != rate or int(up.output_padding[0])
        for up, (rate, size, pad) in zip(ups, config["ups"], strict=True)
    ):
        raise ValueError("a transposed convolution whose answer is not so many times as long")
    file.tensors |= {f"wave.{name}": tensor for name, tensor in wave.tensors.items()}
    file.tensors = {name: tensor.float() for name, tensor in file.tensors.items()}
    file.save(path, config)


def _table(quantizer: Any, linear: Any, factor: float) -> Tensor:
    """What each code becomes in front of the first backbone."""
    embedded = quantizer.codebook.weight.double()
    if type(quantizer.out_project).__name__ != "Identity":
        project = quantizer.out_project
        embedded = embedded @ project.weight[:, :, 0].double().T + project.bias.double()
    return (embedded @ linear.weight.double().T + linear.bias.double()) * factor


def _backbone(file: CodecFile, name: str, own: Any, factor: float) -> int:
    """Returns how many blocks there are. factor: of the answer."""
    file.convolution(f"{name}.embed", own.embed)
    if hasattr(own.norm, "weight"):
        file.linear(f"{name}.norm", own.norm.weight, own.norm.bias)
    for i, block in enumerate(own.convnext):
        file.convnext(f"{name}.blocks.{i}", block)
    last = own.final_layer_norm
    if not own.norm.eps == last.eps == EPS:
        raise ValueError("norms of another kind")
    file.linear(f"{name}.last", last.weight * factor, last.bias * factor)
    return len(own.convnext)


def _speaker(file: CodecFile, speaker: Any, backbone: Any) -> None:
    codes = torch.arange(int(speaker.quantizer.codebook_size))
    file.tensors["voices"] = speaker.quantizer.get_output_from_indices(codes[None, :, None])[0]
    file.linear("speaker", speaker.project.weight, speaker.project.bias)
    norms = [backbone.norm, *(block.norm for block in backbone.convnext)]
    parts = [part for norm in norms for part in (norm.scale, norm.shift)]
    file.linear("condition", torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
