"""Piper's one graph, taken apart: text and decoder as models of their own, its noise as inputs, its weights by name.

    text     input [1, T], input_lengths [1], scales [3], noise_0 [1, 2, T]  ->  mean, std [1, C, L], and the rest
    decoder  latents [1, C, L] = mean + noise * std * noise_scale, and the rest  ->  audio [1, 1, 1, L * hop]

The rest is a mask of ones [1, 1, L], and where a voice has several speakers an embedding [1, E, 1].

The cut is where the graph draws its second noise, found by what is computed and not by names: these vary with the
exporter. The weights keep the names of the training code (VITS's), as far as the exporter has not folded them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...codec.polyphase import polyphase
from ...errors import ExportError
from ...parts import vits_decoder
from ...parts.onnx_file import digest
from ...parts.vits_decoder import Weights

if TYPE_CHECKING:
    from ...export.graph.surgery import Model, Node, Noise

__all__ = ["Cut", "Found", "Taken", "find", "reach", "take_apart", "weights"]


@dataclass(frozen=True)
class Cut:
    """Names of values: of the latents, and of what else the text gives to the decoder."""

    latents: str
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Taken:
    """The halves, and where they meet."""

    text: Model
    decoder: Model
    cut: Cut


@dataclass(frozen=True)
class Found:
    """What is to be known of a voice's model: sha256 of it, where it is cut, and `reach` of its decoder."""

    identity: str
    cut: Cut
    reach: int | None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Found:
        """Of what `find` has answered."""
        return cls(found["identity"], Cut(found["latents"], tuple(found["beside"])), found["reach"])


def find(content: bytes) -> dict[str, Any]:
    """`Found` as JSON has it. Raises ExportError for a model that is built otherwise than Piper's."""
    taken = take_apart(content)
    own = {"identity": digest(content), "reach": reach(taken.decoder)}
    return {**own, "latents": taken.cut.latents, "beside": list(taken.cut.beside)}


def take_apart(content: bytes) -> Taken:
    """Raises ExportError for a model that is built otherwise."""
    from ...export.graph.surgery import Model  # here, since onnx takes a while to import

    whole, noises = Model(content).with_noise_as_inputs()
    if len(noises) != 2 or len(whole.outputs) != 1:
        raise ExportError(f"it draws {len(noises)} times and has {len(whole.outputs)} outputs, where Piper has 2 and 1")
    latents, std = _sum(whole, noises[1])
    text, decoder = whole.cut(latents, [noises[1].like, std], _embedding(whole))
    return Taken(text, decoder, Cut(latents, text.outputs[2:]))


def _sum(model: Model, noise: Noise) -> tuple[str, str]:
    """The names of z and std in z = mean + noise * std * scale."""
    value, factors = noise.name, list[str]()
    while True:
        consumers = model.consumers(value)
        if len(consumers) != 1 or consumers[0].kind not in ("Identity", "Mul", "Add"):
            raise ExportError("its second noise is not scaled and added to a mean, as Piper's is")
        (node,) = consumers
        others = [name for name in node.inputs if name != value]
        value = node.outputs[0]
        if node.kind == "Add":
            if others != [noise.like] or len(factors) != 2:
                raise ExportError("its second noise is not added to the mean that it is shaped like, as Piper's is")
            return value, factors[0]
        factors += others


def _embedding(model: Model) -> list[str]:
    """The name of a speaker's embedding [1, E, 1], if there are several speakers."""
    for looked_up in model.consumers("sid"):
        for node in model.consumers(looked_up.outputs[0]):
            if node.kind == "Unsqueeze":
                return [node.outputs[0]]
    return []


def weights(decoder: Model) -> Weights:
    """The decoder's weights under the names of `parts.vits_decoder`. Raises ExportError where they are not Piper's."""
    return _renamed(decoder, decoder.array)


def reach(decoder: Model) -> int | None:
    """Frames on either side that the decoder's answer to a frame depends on; None where its layers are not known."""
    try:  # noughts of the right shape do
        return vits_decoder.reach(_renamed(decoder, lambda name: np.broadcast_to(np.float32(0), decoder.shape(name))))
    except ExportError:
        return None


def _renamed(model: Model, read: Callable[[str], np.ndarray]) -> Weights:
    layers = {name: node for node in model.nodes() if (name := _layer(node)) is not None}
    slope = next((float(n.attributes.get("alpha", 0.01)) for n in model.nodes() if n.kind == "LeakyRelu"), None)
    try:
        return _Renaming(read, layers).done(slope)
    except (KeyError, IndexError, ValueError) as error:
        raise ExportError(f"the decoder has other layers than Piper's: {error}") from error


def _layer(node: Node) -> str | None:
    """A convolution's name in the training code, from its weight's or its bias's."""
    if node.kind not in ("Conv", "ConvTranspose"):
        return None
    named = [name.rpartition(".")[0] for name in node.inputs[1:] if name.startswith(("flow.", "dec."))]
    return named[0] if named else None


class _Renaming:
    def __init__(self, read: Callable[[str], np.ndarray], layers: dict[str, Node]) -> None:
        """read: a constant by its name."""
        self._read, self._layers = read, layers
        self._tensors: dict[str, np.ndarray] = {}

    def done(self, slope: float | None) -> Weights:
        if slope is None:
            raise ValueError("nothing is rectified")
        flows = list(dict.fromkeys(name.split(".")[2] for name in self._layers if name.startswith("flow.")))
        ups = self._count("dec.ups.{}")
        blocks = self._count("dec.resblocks.{}") // ups
        config: dict[str, Any] = {"slope": slope, "flows": [], "ups": [], "blocks": []}
        for i, flow in enumerate(flows):  # in the order in which the graph undoes them
            config["flows"].append(self._flow(f"flows.{i}", f"flow.flows.{flow}"))
        self._put("first", "dec.conv_pre")
        self._put("last", "dec.conv_post")
        if "dec.cond" in self._layers:
            self._tensors["condition"] = self._conditioning("dec.cond")
        for i in range(ups):
            config["ups"].append(self._up(f"ups.{i}", f"dec.ups.{i}"))
            dilations = [self._block(f"blocks.{i}.{j}", f"dec.resblocks.{i * blocks + j}") for j in range(blocks)]
            config["blocks"] = dilations
        return self._tensors, config

    def _flow(self, name: str, own: str) -> list[int]:
        self._put(f"{name}.pre", f"{own}.pre")
        self._put(f"{name}.post", f"{own}.post")
        if f"{own}.enc.cond_layer" in self._layers:
            self._tensors[f"{name}.condition"] = self._conditioning(f"{own}.enc.cond_layer")
        dilations = []
        for j in range(self._count(f"{own}.enc.in_layers.{{}}")):
            dilations.append(self._put(f"{name}.in.{j}", f"{own}.enc.in_layers.{j}"))
            self._put(f"{name}.out.{j}", f"{own}.enc.res_skip_layers.{j}")
        return dilations

    def _up(self, name: str, own: str) -> list[int]:
        kernel, bias = self._values(own)
        node = self._layers[own].attributes
        stride = int(node["strides"][0])
        plain, shift = polyphase(kernel, bias, stride)
        self._tensors[f"{name}.kernel"] = plain.swapaxes(1, 2)
        if shift is not None:
            self._tensors[f"{name}.bias"] = shift
        return [stride, int(node["pads"][0])]

    def _block(self, name: str, own: str) -> list[int]:
        if f"{own}.convs.0" in self._layers:  # ResBlock2
            count = self._count(f"{own}.convs.{{}}")
            return [self._put(f"{name}.{k}.first", f"{own}.convs.{k}") for k in range(count)]
        count = self._count(f"{own}.convs1.{{}}")
        for k in range(count):
            self._put(f"{name}.{k}.second", f"{own}.convs2.{k}")
        return [self._put(f"{name}.{k}.first", f"{own}.convs1.{k}") for k in range(count)]

    def _put(self, name: str, own: str) -> int:
        """Keep a convolution; answers with its dilation."""
        kernel, bias = self._values(own)
        self._tensors[f"{name}.kernel"] = kernel.swapaxes(1, 2)
        if bias is not None:
            self._tensors[f"{name}.bias"] = bias
        return int(self._layers[own].attributes.get("dilations", [1])[0])

    def _conditioning(self, own: str) -> np.ndarray:
        """[out, E + 1]: of the embedding and a one."""
        kernel, bias = self._values(own)
        shift = np.zeros(len(kernel), np.float32) if bias is None else bias
        return np.concatenate((kernel[:, :, 0], shift[:, None]), axis=1)

    def _values(self, own: str) -> tuple[np.ndarray, np.ndarray | None]:
        arrays = [self._read(name).astype(np.float32) for name in self._layers[own].inputs[1:]]
        return arrays[0], arrays[1] if len(arrays) > 1 else None

    def _count(self, pattern: str) -> int:
        """How many layers there are in a row, from 0 on."""
        count = 0
        while any(f"{name}.".startswith(f"{pattern.format(count)}.") for name in self._layers):
            count += 1
        return count
