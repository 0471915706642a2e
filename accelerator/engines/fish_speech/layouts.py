"""The supported layouts of fish-speech's code, as a table; the installed one is recognised by its functions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import UnsupportedEngine
from ...inference.sampling import SamplingRule
from ...speech import SamplingParams

__all__ = ["HEAD", "LAYOUTS", "S1", "Layout", "check_engine", "installed"]

INFERENCE = "fish_speech.models.text2semantic.inference"
SUPPORTED = (
    "supported are the code that runs OpenAudio S1-mini (commits 9735644 to d3df505) and the current one (S2); "
    "install one of them, or use the engine as it is"
)


@dataclass(frozen=True)
class Layout:
    """What differs between two states of fish-speech's code.

    options: the parameters of its `decode_one_token_ar` that tell it from others. codec_call: the codec's method from
    codes to audio. newest_last: which end of the window of recent frames is filled first; the rest is zeros.
    code_rows: leading rows of the fast head that are sampled from (None: all). top_k: its own default (None: all).
    """

    name: str
    options: frozenset[str]
    codec_call: str
    rule: SamplingRule
    newest_last: bool
    code_rows: int | None
    top_k: int | None
    semantic_ids: Callable[[Any], tuple[int, int]]
    sampling: Callable[[Any, Any, SamplingParams], dict[str, Any]]

    def window(self, frames: np.ndarray) -> np.ndarray:
        """The frames [n, 1 + C] generated after the prefill's -> what the engine looks back on, int64 [1 + C, size]."""
        size = self.rule.window
        recent = frames[-size:]
        window = np.zeros((size, frames.shape[1]), np.int64)
        if self.newest_last:
            window[size - len(recent) :] = recent
        else:
            window[: len(recent)] = recent
        return window.T


def _s1_sampling(model: Any, spec: Any, params: SamplingParams) -> dict[str, Any]:
    import torch

    penalty = 1.0 if params.repetition_penalty is None else params.repetition_penalty
    values = {"temperature": params.temperature or 1.0, "top_p": params.top_p, "repetition_penalty": penalty}
    return {name: torch.tensor(value, dtype=torch.float) for name, value in values.items()}


def _head_sampling(model: Any, spec: Any, params: SamplingParams) -> dict[str, Any]:
    import torch

    dtype = next(model.parameters()).dtype
    bias = torch.full((1, 1, model.config.vocab_size), float("-inf"), dtype=dtype)
    bias[0, 0, torch.from_numpy(spec.rows)] = 0.0
    return {
        "temperature": torch.tensor(params.temperature or 1.0, dtype=dtype),
        "top_p": torch.tensor(params.top_p, dtype=dtype),
        "top_k": params.top_k or model.config.vocab_size,
        "semantic_logit_bias": bias,
    }


S1 = Layout(
    name="s1",
    options=frozenset({"temperature", "top_p", "repetition_penalty"}),
    codec_call="decode",
    rule=SamplingRule(repetition="penalty", window=16, code_rows=1024),
    newest_last=False,
    code_rows=1024,
    top_k=None,
    semantic_ids=lambda model: (model.tokenizer.semantic_begin_id, model.tokenizer.semantic_end_id),
    sampling=_s1_sampling,
)
HEAD = Layout(
    name="head",
    options=frozenset({"temperature", "top_p", "top_k", "semantic_logit_bias"}),
    codec_call="from_indices",
    rule=SamplingRule(repetition="ras", window=10),
    newest_last=True,
    code_rows=None,
    top_k=30,
    semantic_ids=lambda model: (model.config.semantic_begin_id, model.config.semantic_end_id),
    sampling=_head_sampling,
)
LAYOUTS = (S1, HEAD)
_COMMON = {"model", "x", "input_pos", "audio_masks", "audio_parts", "previous_tokens"}


def installed() -> tuple[Layout, Any]:
    """The layout of the fish_speech that can be imported here, and its inference module. Raises UnsupportedEngine."""
    try:
        module = importlib.import_module(INFERENCE)
    except ImportError as error:
        raise UnsupportedEngine(
            f"fish_speech cannot be imported here ({error}): put its checkout on sys.path"
        ) from error
    return layout_of(module), module


def layout_of(module: Any) -> Layout:
    """The layout of an inference module. Raises UnsupportedEngine."""
    functions = ("generate", "generate_long", "decode_one_token_ar", "sample", "multinomial_sample_one_no_sync")
    missing = [name for name in functions if not callable(getattr(module, name, None))]
    if missing:
        raise UnsupportedEngine(f"this version of fish_speech lacks {', '.join(missing)}: {SUPPORTED}")
    options = set(inspect.signature(module.decode_one_token_ar).parameters) - _COMMON
    for layout in LAYOUTS:
        if layout.options == options:
            return layout
    raise UnsupportedEngine(f"this version of fish_speech samples with {', '.join(sorted(options))}: {SUPPORTED}")


def check_engine(engine: Any, codec_call: str) -> None:
    """Raises UnsupportedEngine for what is not an engine of a supported layout."""
    codec = getattr(engine, "decoder_model", None)
    kind = type(codec).__name__
    if "Firefly" in kind:
        raise UnsupportedEngine(f"fish-speech 1.4 and 1.5 (codec {kind}) are not supported: {SUPPORTED}")
    parts = ("encoder", "quantizer", "decoder", "sample_rate", "frame_length", codec_call)
    missing = [f"decoder_model.{name}" for name in parts if not hasattr(codec, name)]
    missing += [n for n in ("llama_queue", "ref_by_hash", "send_Llama_request") if not hasattr(engine, n)]
    if missing:
        raise UnsupportedEngine(f"this {type(engine).__name__} lacks {', '.join(missing)}: {SUPPORTED}")
