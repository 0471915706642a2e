"""A voice like Piper's in the small: its graph's shape and names, with random weights, and the engine around it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS, HIDDEN, WIDE, SYMBOLS, SPEAKERS, EMBEDDED = 4, 6, 8, 32, 3, 5
HOP = 8  # 4 * 2


class _Graph:
    """Nodes and weights, each named as in the training code."""

    def __init__(self, seed: int = 0) -> None:
        self.random, self.nodes, self.tensors, self._count = np.random.default_rng(seed), [], [], 0

    def constant(self, value: Any, name: str | None = None) -> str:
        self._count += 1
        name = name or f"constant_{self._count}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, output: str | None = None, name: str = "", **attributes: Any) -> str:
        self._count += 1
        output = output or f"value_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name or output, **attributes))
        return output

    def weight(self, name: str, *shape: int, scale: float = 0.3) -> str:
        return self.constant((scale * self.random.standard_normal(shape)).astype(np.float32), name)

    def conv(self, x: str, name: str, out: int, inner: int, taps: int, dilation: int = 1, *, bias: bool = True) -> str:
        pad = (taps - 1) * dilation // 2
        given = [self.weight(f"{name}.weight", out, inner, taps)]
        if bias:
            given.append(self.weight(f"{name}.bias", out))
        return self.op("Conv", x, *given, dilations=[dilation], pads=[pad, pad], kernel_shape=[taps], strides=[1])


def model(speakers: int = 1, block: int = 2, seed: int = 0) -> bytes:
    """The voice's file. block: ResBlock1 or ResBlock2."""
    g = _Graph(seed)
    many = speakers > 1
    zero, one, two = (g.constant(np.array([n], np.int64)) for n in range(3))
    # Text: what each phoneme is like, and how long it lasts, which is drawn.
    x = g.op("Gather", g.weight("enc_p.emb.weight", SYMBOLS, 2 * CHANNELS, scale=1.0), "input")  # [1, T, 2C]
    embedding = None
    if many:
        looked_up = g.op("Gather", g.weight("emb_g.weight", speakers, EMBEDDED, scale=1.0), "sid")
        embedding = g.op("Unsqueeze", looked_up, g.constant(np.array([-1], np.int64)))  # [1, E, 1]
    noise_scale, length_scale, noise_w = (
        g.op("Gather", "scales", g.constant(np.array(n, np.int64)), axis=0) for n in range(3)
    )
    shape = g.op("Concat", one, two, g.op("Slice", g.op("Shape", "input"), one, two), axis=0)
    like = g.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))
    drawn = g.op("RandomNormalLike", like, name="/dp/RandomNormalLike")
    spread_w = g.op("Mul", g.op("Slice", drawn, zero, one, one), noise_w)  # [1, 1, T]
    lasting = g.op("Ceil", g.op("Mul", g.op("Exp", spread_w), length_scale))
    there = g.op("Cast", g.op("Greater", lasting, g.constant(np.float32(0))), to=TensorProto.INT64)
    numbers = g.op("CumSum", there, g.constant(np.array(2, np.int64)))  # of the phonemes, from 1 on
    valid = g.op("LessOrEqual", numbers, "input_lengths")  # [1, 1, T]
    lasting = g.op("Mul", lasting, g.op("Cast", valid, to=TensorProto.FLOAT))
    ends = g.op("CumSum", lasting, g.constant(np.array(2, np.int64)))
    total = g.op("Cast", g.op("ReduceSum", lasting, keepdims=0), to=TensorProto.INT64)
    counted = g.op("Range", g.constant(np.array(0, np.int64)), total, g.constant(np.array(1, np.int64)))
    frames = g.op("Unsqueeze", g.op("Cast", counted, to=TensorProto.FLOAT), g.constant(np.array([0, 2], np.int64)))
    before = g.op("Less", frames, ends)  # [1, L, T]
    behind = g.op("Not", g.op("Less", frames, g.op("Sub", ends, lasting)))
    path = g.op("Cast", g.op("And", before, behind), to=TensorProto.FLOAT)
    prior = g.op("Transpose", g.op("MatMul", path, x), perm=[0, 2, 1])  # [1, 2C, L]
    mean = g.op("Slice", prior, zero, g.constant(np.array([CHANNELS], np.int64)), one, output="mean")
    logs = g.op("Slice", prior, g.constant(np.array([CHANNELS], np.int64)), g.constant(np.array([99], np.int64)), one)
    std = g.op("Exp", g.op("Mul", logs, g.constant(np.array(0.3, np.float32))))
    ones = g.op("ReduceSum", path, g.constant(np.array([2], np.int64)), keepdims=1)
    mask = g.op("Transpose", ones, perm=[0, 2, 1])  # [1, 1, L]
    noise = g.op("RandomNormalLike", mean, name="/RandomNormalLike")
    z = g.op("Add", mean, g.op("Mul", g.op("Mul", noise, std), noise_scale))
    # The flow, backwards.
    half = CHANNELS // 2
    for flow in (2, 0):
        own = f"flow.flows.{flow}"
        channels = g.constant(np.arange(CHANNELS)[::-1].copy())
        z = g.op("Gather", z, channels, axis=1)
        first = g.op("Slice", z, zero, g.constant(np.array([half], np.int64)), one)
        second = g.op("Slice", z, g.constant(np.array([half], np.int64)), g.constant(np.array([99], np.int64)), one)
        h = g.op("Mul", g.conv(first, f"{own}.pre", HIDDEN, half, 1), mask)
        both = g.conv(h, f"{own}.enc.in_layers.0", 2 * HIDDEN, HIDDEN, 5)
        if embedding is not None:
            both = g.op("Add", both, g.conv(embedding, f"{own}.enc.cond_layer", 2 * HIDDEN, EMBEDDED, 1))
        middle, end = (g.constant(np.array([n], np.int64)) for n in (HIDDEN, 2 * HIDDEN))
        tanh = g.op("Tanh", g.op("Slice", both, zero, middle, one))
        gate = g.op("Sigmoid", g.op("Slice", both, middle, end, one))
        answer = g.conv(g.op("Mul", tanh, gate), f"{own}.enc.res_skip_layers.0", HIDDEN, HIDDEN, 1)
        shift = g.op("Mul", g.conv(g.op("Mul", answer, mask), f"{own}.post", half, HIDDEN, 1), mask)
        z = g.op("Concat", first, g.op("Mul", g.op("Sub", second, shift), mask), axis=1)
    # HiFi-GAN.
    x = g.conv(g.op("Mul", z, mask), "dec.conv_pre", WIDE, CHANNELS, 7)
    if embedding is not None:
        x = g.op("Add", x, g.conv(embedding, "dec.cond", WIDE, EMBEDDED, 1))
    channels_now = WIDE
    for i, (rate, taps) in enumerate(((4, 8), (2, 4))):
        x = g.op("LeakyRelu", x, alpha=0.1)
        weights = [g.weight(f"dec.ups.{i}.weight", channels_now, channels_now // 2, taps)]
        weights.append(g.weight(f"dec.ups.{i}.bias", channels_now // 2))
        pad = (taps - rate) // 2
        x = g.op("ConvTranspose", x, *weights, kernel_shape=[taps], strides=[rate], pads=[pad, pad])
        channels_now //= 2
        sums = [
            _block(g, x, f"dec.resblocks.{2 * i + j}", block, channels_now, taps_, dilations)
            for j, (taps_, dilations) in enumerate(((3, (1, 2)), (5, (2, 3))))
        ]
        x = g.op("Div", g.op("Add", *sums), g.constant(np.array(2, np.float32)))
    x = g.conv(g.op("LeakyRelu", x, alpha=0.01), "dec.conv_post", 1, channels_now, 7, bias=False)
    g.op("Unsqueeze", g.op("Tanh", x), one, output="output")
    inputs = {"input": (TensorProto.INT64, [1, "T"]), "input_lengths": (TensorProto.INT64, [1]),
              "scales": (TensorProto.FLOAT, [3])} | ({"sid": (TensorProto.INT64, [1])} if many else {})  # fmt: skip
    graph = helper.make_graph(
        g.nodes,
        "voice",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "n"])],
        g.tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _block(g: _Graph, x: str, own: str, kind: int, channels: int, taps: int, dilations: tuple[int, ...]) -> str:
    for k, dilation in enumerate(dilations):
        h = g.op("LeakyRelu", x, alpha=0.1)
        if kind == 1:
            h = g.op("LeakyRelu", g.conv(h, f"{own}.convs1.{k}", channels, channels, taps, dilation), alpha=0.1)
            h = g.conv(h, f"{own}.convs2.{k}", channels, channels, taps)
        else:
            h = g.conv(h, f"{own}.convs.{k}", channels, channels, taps, dilation)
        x = g.op("Add", h, x)
    return x


@dataclass
class SynthesisConfig:
    speaker_id: int | None = None
    length_scale: float | None = None
    noise_scale: float | None = None
    noise_w_scale: float | None = None
    normalize_audio: bool = True
    volume: float = 1.0


@dataclass
class Chunk:
    audio_float_array: np.ndarray
    sample_rate: int


@dataclass
class Config:
    num_speakers: int = 1
    num_symbols: int = SYMBOLS
    sample_rate: int = 16_000
    speaker_id_map: dict[str, int] = field(default_factory=dict)
    default_speaker_id: int = 0
    length_scale: float = 3.0
    noise_scale: float = 0.667
    noise_w_scale: float = 0.8

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Config:
        return cls(**told)


class PiperVoice:
    """The interface of piper-tts 1.8.0 that an adapter uses: sentences end at a full stop, letters are phonemes."""

    __module__, __qualname__ = "piper.voice", "PiperVoice"

    def __init__(self, session: Any, config: Config) -> None:
        self.session, self.config = session, config

    def phonemize(self, text: str) -> list[list[str]]:
        return [list(each.strip() + ".") for each in text.split(".") if each.strip()]

    def phonemes_to_ids(self, phonemes: list[str]) -> list[int]:
        return [1, *(3 + ord(each) % (SYMBOLS - 3) for each in phonemes), 2]

    def phoneme_ids_to_audio(self, ids: list[int], config: SynthesisConfig | None = None) -> np.ndarray:
        config, own = config or SynthesisConfig(), self.config
        names = ("noise_scale", "length_scale", "noise_w_scale")
        scales = [getattr(own if getattr(config, name) is None else config, name) for name in names]
        feed = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": np.array(scales, np.float32)}
        if own.num_speakers > 1:
            feed["sid"] = np.array([own.default_speaker_id if config.speaker_id is None else config.speaker_id])
        return np.asarray(self.session.run(None, feed)[0].squeeze())

    def synthesize(self, text: str, syn_config: SynthesisConfig | None = None) -> Iterator[Chunk]:
        config = syn_config or SynthesisConfig()
        for phonemes in self.phonemize(text):
            audio = self.phoneme_ids_to_audio(self.phonemes_to_ids(phonemes), config)
            if config.normalize_audio:
                audio = audio / np.abs(audio).max()
            yield Chunk(np.clip(audio * config.volume, -1, 1).astype(np.float32), self.config.sample_rate)


def voice(content: bytes | None = None, **config: Any) -> PiperVoice:
    """A voice of its own; `piper.voice` is importable while a test patches it in by `modules`."""
    providers = ["CPUExecutionProvider"]
    given = model(config.get("num_speakers", 1)) if content is None else content
    return PiperVoice(onnxruntime.InferenceSession(given, providers=providers), Config(**config))


def modules() -> dict[str, types.ModuleType]:
    """What stands for the package."""
    made = types.ModuleType("piper.voice")
    made.SynthesisConfig, made.PiperVoice = SynthesisConfig, PiperVoice  # type: ignore[attr-defined]
    top = types.ModuleType("piper")
    top.PiperVoice, top.PiperConfig = PiperVoice, Config  # type: ignore[attr-defined]
    return {"piper": top, "piper.voice": made}
