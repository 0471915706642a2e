"""What a benchmark knows of an engine, and users need not: how it runs as it ships, and how PyTorch is timed in it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..engines import Adapter
from ..inference.transformer import StepTimes
from ..parts.language_model import LANGUAGE_MODEL
from ..parts.part import Call

__all__ = ["HOOKS", "Hooks", "hooks_of"]


@dataclass(frozen=True)
class Hooks:
    """Of one kind of adapter.

    as_shipped: the calls, by part name, that run exactly as the engine ships (its own cache, its own dtype), with the
    signature of the parts' originals; None if the originals are all that the engine does. open_as_shipped: the adapter
    of an engine that the engine's own loaders opened from a checkpoint, so that `original` is that engine itself.
    torch_times: within the block, PyTorch's language model adds the seconds of its slow and its fast model to `times`;
    nothing stays changed afterwards. compile_torch: puts PyTorch's language model under `torch.compile`, for this
    process.
    """

    as_shipped: Callable[[Any], Mapping[str, Call]] | None = None
    open_as_shipped: Callable[..., Adapter] | None = None
    torch_times: Callable[[Any, StepTimes], AbstractContextManager[None]] | None = None
    compile_torch: Callable[[Any], None] | None = None


def hooks_of(adapter: Adapter) -> Hooks | None:
    """None for an engine that is only measured end to end, by `original`."""
    return HOOKS.get(adapter.name)


def _fish_speech_as_shipped(adapter: Any) -> Mapping[str, Call]:
    """The language model with the engine's own cache, where there is a live engine."""
    from ..engines.fish_speech import pytorch

    if not adapter.is_live:
        return {}
    run = functools.partial(
        pytorch.generate, adapter.module, adapter.layout, adapter.model.get(), adapter.spec, own_cache=True
    )
    return {LANGUAGE_MODEL: run}


def _open_fish_speech(
    path: str | Path,
    *,
    decoder_config_name: str = "modded_dac_vq",
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16",
    **_: Any,
) -> Adapter:
    """On CPUs fish-speech's own tools open it in bfloat16."""
    from ..engines.fish_speech import FishSpeechAdapter
    from ..engines.fish_speech.adapter import DTYPES
    from ..engines.fish_speech.layouts import installed

    module = installed()[1]
    from fish_speech.inference_engine import TTSInferenceEngine
    from fish_speech.models.dac.inference import load_model

    folder, precision = Path(path), DTYPES[dtype]
    requests = module.launch_thread_safe_queue(
        checkpoint_path=str(folder), device="cpu", precision=precision, compile=False
    )
    codec = load_model(decoder_config_name, str(folder / "codec.pth"), device="cpu")
    engine = TTSInferenceEngine(llama_queue=requests, decoder_model=codec, precision=precision, compile=False)
    return FishSpeechAdapter(engine)


@contextlib.contextmanager
def _reference_times(adapter: Any, times: StepTimes) -> Iterator[None]:
    model = adapter.engine.language_model

    def timed(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            answer = forward(*args)
            setattr(times, name, getattr(times, name) + time.perf_counter() - start)
            return answer

        return call

    model.slow, model.fast = timed("slow", model.slow), timed("fast", model.fast)
    try:
        yield
    finally:
        del model.slow, model.fast


def _compile_reference(adapter: Any) -> None:
    """Block by block. Positions and lengths are symbols, or every frame would be compiled anew."""
    import torch

    model = adapter.engine.language_model
    torch._dynamo.config.recompile_limit = 64  # one row and several, with a mask and without, both stacks
    for block in (*model.layers, *model.fast_layers):
        block.compile(dynamic=True)


HOOKS: dict[str, Hooks] = {
    # The reference engine sizes its cache to the request, as its parts' originals do.
    "reference": Hooks(torch_times=_reference_times, compile_torch=_compile_reference),
    "fish-speech": Hooks(_fish_speech_as_shipped, _open_fish_speech),
}
