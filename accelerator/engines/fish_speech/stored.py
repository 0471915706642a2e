"""What is stored of the codec for its PyTorch rewrite: one file of weights for each direction.

Weights are float32, weight norm folded, and transposed convolutions are convolutions. What reads it is in `rewrite`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ...export.component import Progress, ProgressEvent
from ...parts.codec_file import EPS, CodecFile
from .codec import Decode, Encode
from .structure import computing

__all__ = ["FILE", "build", "save_decoder", "save_encoder"]

FILE = "rewrite.safetensors"


def build(part: Literal["encoder", "decoder"], codec: Callable[[], Any]) -> Callable[[Path, str, Progress], None]:
    """Writes one direction's file."""

    def write(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(f"{part}-rewrite", "build", 0, 1, precision))
        with computing():
            (save_decoder if part == "decoder" else save_encoder)(codec(), directory / FILE)

    return write


def save_decoder(codec: Any, path: Path) -> None:
    """Write a codec's decoder. Raises AttributeError or ValueError for a codec that is built otherwise."""
    parts, file = Decode(codec), CodecFile()
    books = (*parts.semantic.quantizers, *parts.residual.quantizers)
    file.tensors["books"] = torch.cat([book.codebook.weight for book in books])
    file.tensors["projection.weight"] = torch.cat([book.out_proj.weight[:, :, 0] for book in books], dim=1)
    file.tensors["projection.bias"] = torch.stack([book.out_proj.bias for book in books]).sum(0)
    config: dict[str, Any] = {"sizes": [len(book.codebook.weight) for book in books], "eps": EPS}
    config["post"] = _transformer(file, "post", parts.post_module)
    for i, (conv, block) in enumerate(parts.upsample):
        file.upsampling(f"up.{i}.conv", conv)
        file.convnext(f"up.{i}", block)
    config["up"] = [int(conv.stride[0]) for conv, _ in parts.upsample]
    ups, config["dilations"] = file.decoder(parts.decoder.model)
    config["rates"] = [int(up.stride[0]) for up in ups]
    file.save(path, config)


def save_encoder(codec: Any, path: Path) -> None:
    """Write a codec's encoder. Raises AttributeError or ValueError for a codec that is built otherwise."""
    parts, file = Encode(codec), CodecFile()
    config: dict[str, Any] = {"hop": int(codec.frame_length), "eps": EPS, "rates": [], "transformers": []}
    first, *stages, last_snake, last = parts.encoder.block
    file.convolution("first", first)
    for i, stage in enumerate(stages):
        *units, before, down, transformer = stage.block
        config["dilations"] = file.units(f"stages.{i}.units", units)
        file.convolution(f"stages.{i}", down, before)
        config["rates"].append(int(down.stride[0]))
        config["transformers"].append(_transformer(file, f"stages.{i}.transformer", transformer))
    file.convolution("last", last, last_snake)
    for i, (conv, block) in enumerate(parts.downsample):
        file.convolution(f"down.{i}.conv", conv)
        file.convnext(f"down.{i}", block)
    config["down"] = [int(conv.stride[0]) for conv, _ in parts.downsample]
    config["pre"] = _transformer(file, "pre", parts.pre_module)
    for i, book in enumerate(cast(Any, parts.quantizers)):
        for name, conv in (("inward", book.in_proj), ("outward", book.out_proj)):
            file.linear(f"books.{i}.{name}", conv.weight[:, :, 0], conv.bias)
        file.tensors[f"books.{i}.codebook"] = book.codebook.weight
    config["books"] = len(parts.quantizers)
    file.save(path, config)


def _transformer(file: CodecFile, name: str, module: Any) -> dict[str, Any] | None:
    """A transformer limited to a window, its layer scales folded; None for no transformer at all."""
    kind = type(module).__name__
    if kind == "Identity":
        return None
    look_ahead, config = type(module.look_ahead_conv).__name__, module.config
    if kind != "WindowLimitedTransformer" or not module.causal or look_ahead != "Identity":
        raise ValueError(f"a transformer of another kind: {kind}, look-ahead {look_ahead}")
    if config.pos_embed_type != "rope" or not module.channels_first:
        raise ValueError(f"a transformer with {config.pos_embed_type} positions")
    ends = {"input": module.input_proj, "output": module.output_proj}
    for end, layer in ends.items():
        if hasattr(layer, "weight"):
            file.linear(f"{name}.{end}", layer.weight, layer.bias)
    for i, layer in enumerate(module.layers):
        scales = layer.attention_layer_scale.gamma, layer.ffn_layer_scale.gamma
        ffn = layer.feed_forward
        file.tensors[f"{name}.{i}.attention_norm"] = layer.attention_norm.weight
        file.tensors[f"{name}.{i}.qkv"] = layer.attention.wqkv.weight
        file.tensors[f"{name}.{i}.out"] = layer.attention.wo.weight * scales[0][:, None]
        file.tensors[f"{name}.{i}.ffn_norm"] = layer.ffn_norm.weight
        file.tensors[f"{name}.{i}.gate_up"] = torch.cat((ffn.w1.weight, ffn.w3.weight))
        file.tensors[f"{name}.{i}.down"] = ffn.w2.weight * scales[1][:, None]
    file.tensors[f"{name}.norm"], file.tensors[f"{name}.rotations"] = module.norm.weight, module.freqs_cis
    shape = {"layers": len(module.layers), "heads": config.n_head, "kv_heads": config.n_local_heads}
    more = {"head_dim": config.head_dim, "eps": config.norm_eps, "window": module.window_size}
    return {**shape, **more, **{end: hasattr(layer, "weight") for end, layer in ends.items()}}
