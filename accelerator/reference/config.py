"""Every size of the engine as one table of frozen dataclasses, and their JSON form.

A forward pass reads its dimensions from here and from nowhere else. `SIZES` maps a name to an `EngineConfig`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import ReferenceEngineError

__all__ = [
    "SIZES",
    "CodecConfig",
    "DACDecoderConfig",
    "EncoderConfig",
    "EngineConfig",
    "ISTFTDecoderConfig",
    "LanguageModelConfig",
    "QuantizerConfig",
    "STFTEncoderConfig",
    "TransformerConfig",
    "from_json",
    "to_json",
]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of pre-norm Llama blocks. `window`: positions a query sees, itself included (None: all before it)."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    qk_norm: bool = False
    norm_eps: float = 1e-6
    rope_base: float = 10_000.0
    rope_bf16: bool = False  # round the table to bfloat16, as models trained in bfloat16 saw it
    window: int | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ReferenceEngineError("heads must be a multiple of kv_heads, and head_dim even")


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The dual autoregressive transformer: `slow` runs once a frame, `fast` once a codebook of that frame.

    Token ids: bytes are 0..255, `semantic_begin + i` is code i of the first codebook, `speaker_begin + i` is speaker i.
    """

    slow: TransformerConfig
    fast: TransformerConfig
    vocab_size: int
    codebooks: int
    codebook_size: int
    im_start: int
    im_end: int
    voice: int
    semantic_begin: int
    max_seq_len: int
    scale_codebook_embeddings: bool = True
    tie_output: bool = False
    fast_input: Literal["pre_norm", "post_norm"] = "pre_norm"
    repetition_aware: bool = True  # draw again when a token repeats within the last `repetition_window`
    repetition_window: int = 10
    repetition_penalty: float = 1.0  # the default of `generate`
    speakers: tuple[str, ...] = ()  # chosen by name: the speaker's token stands behind `im_start`
    speaker_begin: int = 0
    untold: int | None = None  # stands for each byte of text in an unconditional row, for guidance

    def __post_init__(self) -> None:
        if self.slow.dim != self.fast.dim:
            raise ReferenceEngineError("the slow and the fast transformer must have the same dim")
        if self.codebooks < 2 or self.semantic_begin + self.codebook_size > self.vocab_size:
            raise ReferenceEngineError("two codebooks at least, and the semantic range must lie within the vocabulary")
        named = set(range(self.speaker_begin, self.speaker_begin + len(self.speakers)))
        taken = {
            *range(256),
            self.im_start,
            self.im_end,
            self.voice,
            *range(self.semantic_begin, self.semantic_end + 1),
        }
        if named & taken or max(named, default=0) >= self.vocab_size:
            raise ReferenceEngineError("the speakers' tokens must be in the vocabulary and mean nothing else")
        if self.untold is not None and (self.untold in named | taken or not 0 <= self.untold < self.vocab_size):
            raise ReferenceEngineError("the untold token must be in the vocabulary and mean nothing else")
        if self.fast_input not in ("pre_norm", "post_norm"):
            raise ReferenceEngineError(f"fast_input must be 'pre_norm' or 'post_norm', not {self.fast_input!r}")

    @property
    def semantic_end(self) -> int:
        """The last semantic token id (inclusive)."""
        return self.semantic_begin + self.codebook_size - 1

    @property
    def candidate_ids(self) -> tuple[int, ...]:
        """Token ids that can be sampled, in the order of `slow_logits`: the semantic range, then `im_end`."""
        return (*range(self.semantic_begin, self.semantic_end + 1), self.im_end)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """DAC encoder: `dim` channels, doubled at each rate; an optional transformer after the last."""

    dim: int
    rates: tuple[int, ...]
    transformer: TransformerConfig | None = None

    @property
    def hop(self) -> int:
        return math.prod(self.rates)


@dataclass(frozen=True, kw_only=True)
class STFTEncoderConfig:
    """Log magnitudes of windows four hops deep, then ConvNeXt blocks: nothing runs at the sample rate."""

    dim: int
    layers: int
    ffn_dim: int
    hop: int
    n_fft: int
    kind: Literal["stft"] = "stft"

    def __post_init__(self) -> None:
        if self.n_fft != 4 * self.hop:
            raise ReferenceEngineError("n_fft must be four hops")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Residual vector quantizer at the frame rate; its transformer stands before (encode) and after it (decode)."""

    codebook_sizes: tuple[int, ...]
    codebook_dim: int
    downsample: tuple[int, ...]
    transformer: TransformerConfig | None = None


@dataclass(frozen=True, kw_only=True)
class DACDecoderConfig:
    """DAC decoder: `dim` channels, halved at each rate."""

    dim: int
    rates: tuple[int, ...]
    kind: Literal["dac"] = "dac"

    @property
    def hop(self) -> int:
        return math.prod(self.rates)


@dataclass(frozen=True, kw_only=True)
class ISTFTDecoderConfig:
    """Vocos decoder: ConvNeXt blocks at the latent rate, then an inverse STFT. `n_fft` is 4 hops."""

    dim: int
    layers: int
    ffn_dim: int
    hop: int
    n_fft: int
    kind: Literal["istft"] = "istft"

    def __post_init__(self) -> None:
        if self.n_fft != 4 * self.hop:
            raise ReferenceEngineError("n_fft must be four hops: the window's overlap is then constant")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """waveform -> encoder -> latents -> quantizer -> codes, and back. One frame is `hop` samples.

    `lag`: samples by which decoded audio comes late, as an inverse STFT was trained to; the engine sees to it.
    """

    sample_rate: int
    latent_dim: int
    encoder: EncoderConfig | STFTEncoderConfig
    quantizer: QuantizerConfig
    decoder: DACDecoderConfig | ISTFTDecoderConfig
    lag: int = 0

    def __post_init__(self) -> None:
        if self.encoder.hop != self.decoder.hop:
            raise ReferenceEngineError("encoder and decoder must have the same hop")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.decoder.hop * math.prod(self.quantizer.downsample)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """A whole engine. `max_new_tokens` (frames) is the default bound of `generate`, `temperature` and `top_p` its
    defaults for sampling; `stream_context` bounds the frames decoded again before each streamed chunk (a codec whose
    receptive field is shorter streams exactly).

    text: "spoken" sends every text through `spoken.spoken` first, as the voice has read nothing else, and "sounds" its
    words through `pronounce.pronounced`. longest_text: bytes of a turn's words that the voice can speak; a longer text
    is spoken phrase after phrase. guidance: the scale of classifier-free guidance, by which the conditioned row's
    logits are extrapolated away from the unconditional row's (Ho and Salimans 2022, arXiv:2207.12598); 1 is none.
    plausible: how likely a token must be without guidance to be drawn with it, as a share of the likeliest one's
    probability (Li et al. 2022, "Contrastive Decoding", arXiv:2210.15097); 0 is no bound.
    """

    name: str
    language_model: LanguageModelConfig
    codec: CodecConfig
    max_new_tokens: int
    temperature: float = 0.7
    top_p: float = 0.8
    stream_context: int = 64
    text: Literal["as_given", "spoken", "sounds"] = "as_given"
    longest_text: int | None = None
    guidance: float = 1.0
    plausible: float = 0.0

    def __post_init__(self) -> None:
        sizes = self.codec.quantizer.codebook_sizes
        if len(sizes) != self.language_model.codebooks or max(sizes) > self.language_model.codebook_size:
            raise ReferenceEngineError("language model and quantizer must agree about the codebooks")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ReferenceEngineError(f"guidance must be 0 or more, not {self.guidance!r}")
        if not 0 <= self.plausible <= 1:
            raise ReferenceEngineError(f"plausible must be in [0, 1], not {self.plausible!r}")
        if self.guidance != 1 and self.language_model.untold is None:
            raise ReferenceEngineError("guidance needs a language model that has learnt to do without the text")
        if self.text not in ("as_given", "spoken", "sounds"):
            raise ReferenceEngineError(f"text must be 'as_given', 'spoken' or 'sounds', not {self.text!r}")


def to_json(config: EngineConfig) -> str:
    """The configuration as JSON; `from_json` reads it back."""
    return json.dumps(asdict(config), sort_keys=True)


def from_json(text: str) -> EngineConfig:
    """Read `to_json`'s answer. Raises ReferenceEngineError for unknown or missing fields."""
    try:
        data = json.loads(text)
        lm, codec = data.pop("language_model"), data.pop("codec")
        encoder, decoder = codec.pop("encoder"), codec.pop("decoder")
        kinds = {"dac": DACDecoderConfig, "istft": ISTFTDecoderConfig}
        return EngineConfig(
            **data,
            language_model=LanguageModelConfig(**_tuples(_stacks(lm, "slow", "fast"))),
            codec=CodecConfig(
                encoder=(STFTEncoderConfig if encoder.get("kind") == "stft" else EncoderConfig)(
                    **_tuples(_stacks(encoder, "transformer"))
                ),
                quantizer=QuantizerConfig(**_tuples(_stacks(codec.pop("quantizer"), "transformer"))),
                decoder=kinds[decoder["kind"]](**_tuples(decoder)),
                **codec,
            ),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ReferenceEngineError(f"not a configuration of this engine: {error!r}") from error


def _stacks(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: TransformerConfig(**v) if k in names and v is not None else v for k, v in data.items()}


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


_TINY = EngineConfig(
    name="tiny",
    language_model=LanguageModelConfig(
        slow=TransformerConfig(
            dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_dim=128, qk_norm=True, rope_base=1e6, rope_bf16=True
        ),
        fast=TransformerConfig(
            dim=64, layers=1, heads=4, kv_heads=2, head_dim=16, ffn_dim=128, rope_base=1e6, rope_bf16=True
        ),
        vocab_size=336,
        codebooks=4,
        codebook_size=64,
        im_start=256,
        im_end=257,
        voice=258,
        semantic_begin=260,
        max_seq_len=2048,
    ),
    codec=CodecConfig(
        sample_rate=16_000,
        latent_dim=32,
        encoder=EncoderConfig(
            dim=4,
            rates=(2, 4, 8),
            transformer=TransformerConfig(dim=32, layers=1, heads=2, kv_heads=2, head_dim=16, ffn_dim=64, window=16),
        ),
        quantizer=QuantizerConfig(
            codebook_sizes=(64, 32, 32, 32),
            codebook_dim=4,
            downsample=(2, 2),
            transformer=TransformerConfig(dim=32, layers=1, heads=2, kv_heads=2, head_dim=16, ffn_dim=64, window=8),
        ),
        decoder=DACDecoderConfig(dim=48, rates=(8, 4, 2)),
    ),
    max_new_tokens=64,
)

# The bundled voice's: 8.6 million parameters.
_SMALL = EngineConfig(
    name="small",
    language_model=LanguageModelConfig(
        slow=TransformerConfig(
            dim=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffn_dim=448, qk_norm=True, rope_base=1e5
        ),
        fast=TransformerConfig(dim=256, layers=1, heads=4, kv_heads=2, head_dim=64, ffn_dim=512, rope_base=1e5),
        vocab_size=776,
        codebooks=6,
        codebook_size=512,
        im_start=256,
        im_end=257,
        voice=258,
        semantic_begin=264,
        max_seq_len=4096,
        tie_output=True,
    ),
    codec=CodecConfig(
        sample_rate=16_000,
        latent_dim=128,
        encoder=STFTEncoderConfig(dim=128, layers=3, ffn_dim=384, hop=160, n_fft=640),
        quantizer=QuantizerConfig(
            codebook_sizes=(512,) * 6,
            codebook_dim=8,
            downsample=(2, 2),
            transformer=TransformerConfig(dim=128, layers=1, heads=4, kv_heads=4, head_dim=32, ffn_dim=256, window=16),
        ),
        decoder=ISTFTDecoderConfig(dim=192, layers=8, ffn_dim=576, hop=160, n_fft=640),
        lag=1_120,  # the inverse STFT's three hops, and a frame: the decoder knows what comes next
    ),
    max_new_tokens=512,
)

_S1_CODEC_STACK = TransformerConfig(
    dim=1024, layers=8, heads=16, kv_heads=16, head_dim=64, ffn_dim=3072, norm_eps=1e-5, window=128
)

# Dimensions of OpenAudio S1-mini (860 M + 391 M parameters).
_S1_MINI = EngineConfig(
    name="s1-mini",
    language_model=LanguageModelConfig(
        slow=TransformerConfig(
            dim=1024,
            layers=28,
            heads=16,
            kv_heads=8,
            head_dim=128,
            ffn_dim=3072,
            qk_norm=True,
            rope_base=1e6,
            rope_bf16=True,
        ),
        fast=TransformerConfig(
            dim=1024, layers=4, heads=16, kv_heads=8, head_dim=64, ffn_dim=3072, rope_base=1e6, rope_bf16=True
        ),
        vocab_size=155_776,
        codebooks=10,
        codebook_size=4096,
        im_start=151_646,
        im_end=151_647,
        voice=151_648,
        semantic_begin=151_658,
        max_seq_len=8192,
        repetition_aware=False,
        repetition_window=16,
        repetition_penalty=1.1,
    ),
    codec=CodecConfig(
        sample_rate=44_100,
        latent_dim=1024,
        encoder=EncoderConfig(
            dim=64,
            rates=(2, 4, 8, 8),
            transformer=TransformerConfig(
                dim=1024, layers=4, heads=16, kv_heads=16, head_dim=64, ffn_dim=3072, norm_eps=1e-5, window=512
            ),
        ),
        quantizer=QuantizerConfig(
            codebook_sizes=(4096, *[1024] * 9),
            codebook_dim=8,
            downsample=(2, 2),
            transformer=_S1_CODEC_STACK,
        ),
        decoder=DACDecoderConfig(dim=1536, rates=(8, 8, 4, 2)),
    ),
    max_new_tokens=1024,
    stream_context=24,
)

SIZES: Mapping[str, EngineConfig] = {config.name: config for config in (_TINY, _SMALL, _S1_MINI)}
