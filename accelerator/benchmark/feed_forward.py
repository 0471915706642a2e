"""A feed-forward engine, and its pool: `accelerator bench feed-forward`.

    result = run(FeedForwardOptions(), report=print)    # JSON-able
    print(to_markdown(result))

The engine is transformers' text-to-speech pipeline around VITS, of random weights, at the size of MMS-TTS. It speaks a
sentence, and a text of several segments: as it ships (segment by segment, as its users do), in PyTorch with its weight
norms folded and nothing recorded for gradients, and wrapped, one segment after the other and by a pool. All but
the pool speak the same noise, so that their audio has the same length. Everything happens in this process.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineError, InvalidOption
from .record import Record
from .report import _cell, _table, document
from .statistics import ratio, summarize

__all__ = ["SCHEMA", "FeedForwardOptions", "figures", "run", "title", "to_markdown"]

SCHEMA = 1
AS_SHIPPED, FOLDED, ONE_BY_ONE, POOL = "as-shipped", "pytorch-folded", "accelerator", "accelerator-pool"
SENTENCE = "the evening sun goes down behind the distant hills, and nobody minds"
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "flow_size": 16,
    "upsample_initial_channel": 32,
    "num_hidden_layers": 2,
}
_LETTERS_A_SECOND = 15.0


@dataclass(frozen=True)
class FeedForwardOptions:
    """rounds: of which medians are taken. segments: of the long text. threads: of every arm, and of the pool; None is
    one a core. cache_dir: of the exports. quick: a tiny model, whose figures mean nothing. Raises InvalidOption."""

    rounds: int = 3
    segments: int = 4
    threads: int | None = None
    cache_dir: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if min(self.rounds, self.segments) < 1:
            raise InvalidOption("rounds and segments must be at least 1")


def run(options: FeedForwardOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure, which takes minutes. report: told each step in one line. Raises EngineError without transformers."""
    if importlib.util.find_spec("transformers") is None:
        raise EngineError("there is no transformers: pip install transformers")
    import torch

    record = Record("accelerator-feed-forward-benchmark", SCHEMA, report)
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(Path(folder), options.quick)
    threads = options.threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _Arms(engine, options, report) as arms:
            seconds = _measured(arms, options, report)
    finally:
        torch.set_num_threads(before)
    figures = {
        measure: {arm: summarize(values, "ratio" if measure != "first" else "s") for arm, values in by_arm.items()}
        for measure, by_arm in seconds.items()
    }
    ratios = {
        measure: {
            base: {arm: ratio(by_arm[base], values) for arm, values in by_arm.items() if arm not in (AS_SHIPPED, base)}
            for base in (AS_SHIPPED, FOLDED)
            if base in by_arm
        }
        for measure, by_arm in seconds.items()
    }
    plan = {"options": {k: v if k != "cache_dir" else None for k, v in asdict(options).items()}}
    return record.result(
        {**plan, "rounds": options.rounds, "segments": options.segments},
        engine={"name": "vits", "size": "mms-tts" if not options.quick else "tiny"},
        transformers=importlib.metadata.version("transformers"),
        threads=threads,
        figures=figures,
        ratios=ratios,
    )


def _engine(folder: Path, quick: bool) -> Any:
    """The pipeline. Random durations have no rate: it is set to that of speech."""
    import numpy as np
    import torch
    import transformers

    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(" abcdefghijklmnopqrstuvwxyz,'-")}))
    tokenizer = transformers.VitsTokenizer(str(folder / "vocab.json"), phonemize=False, pad_token=" ", unk_token=" ")
    torch.manual_seed(0)
    config = transformers.VitsConfig(pad_token_id=0, **(_TINY if quick else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.VitsModel(config).eval()
        with torch.inference_mode():
            model.decoder.conv_post.weight.mul_(0.05)  # random weights would clip
        pipeline: Any = transformers.pipeline
        engine = pipeline("text-to-speech", model=model, tokenizer=tokenizer)
    torch.manual_seed(0)
    spoken = np.size(engine(SENTENCE)["audio"]) / config.sampling_rate
    model.speaking_rate = spoken * _LETTERS_A_SECOND / len(SENTENCE)
    return engine


class _Arms:
    """Arm -> measure -> a call that answers (seconds, seconds of audio, seconds to the first of it)."""

    def __init__(self, engine: Any, options: FeedForwardOptions, report: Callable[[str], None]) -> None:
        import numpy as np

        from ..engines.base import Bound, Job
        from ..engines.vits import VitsAdapter, traceable
        from ..engines.vits.adapter import DECODER, TEXT
        from ..hardware import detect
        from ..metrics import Meter
        from ..optimizer import UniversalOptimizer
        from ..pipeline.pooled import Pooled, Workers
        from ..speech import SamplingParams, SpeechRequest
        from ..text.segments import Segment

        report("exporting, unless it is in the cache")
        self._optimizer = UniversalOptimizer(
            engine, cache_dir=options.cache_dir, threads=options.threads, probe=options.threads is None
        )
        self._optimizer.prepare()
        for name, part in self._optimizer.status()["parts"].items():
            report(f"{name}: {part['backend']} {part['precision'] or ''}, {part['reason']}")
        folded = VitsAdapter(engine)
        folded_model = traceable.exportable(engine.model)
        folded._text, folded._decoder = traceable.Text(folded_model), traceable.Decoder(folded_model)
        plain = folded.bind({TEXT: folded._text_in_torch, DECODER: folded._decode_in_torch})
        routed = self._optimizer._bound
        rate = engine.model.config.sampling_rate
        texts = [f"{SENTENCE}, {SENTENCE}, {SENTENCE}." for _ in range(options.segments)]
        text = " ".join(texts)

        def each(say: Callable[[str], Any]) -> Callable[[list[str]], tuple[float, float, float]]:
            def call(texts: list[str]) -> tuple[float, float, float]:
                begun, first, samples = time.perf_counter(), 0.0, 0
                for number, one in enumerate(texts):
                    samples += say(one).size
                    first = first if number else time.perf_counter() - begun
                return time.perf_counter() - begun, samples / rate, first

            return call

        def shipped(one: str) -> Any:
            import torch

            torch.manual_seed(0)
            return engine(one)["audio"]

        workers, stages = Workers(options.threads or detect().usable_cores), routed.stages
        assert stages is not None

        def pooled(_: list[str]) -> tuple[float, float, float]:
            begun, first, samples = time.perf_counter(), 0.0, 0
            request = SpeechRequest(text, sampling=SamplingParams(seed=0), streaming=True)
            for audio in Pooled(stages, request, None, rate, Meter(), workers=workers).speak():
                first = first or time.perf_counter() - begun
                samples += audio.size
            return time.perf_counter() - begun, samples / rate, first

        def through(bound: Bound) -> Callable[[str], Any]:
            stages, job = bound.stages, Job(SamplingParams(seed=0))
            assert stages is not None
            return lambda one: np.concatenate(
                [u for us in stages.generate(Segment(one, 0.0, 0), None, job) for u in us]
            )

        one_by_one = {
            AS_SHIPPED: each(shipped),
            FOLDED: each(through(plain)),
            ONE_BY_ONE: each(through(routed)),
        }
        self.calls: dict[str, dict[str, Callable[[], tuple[float, float, float]]]] = {
            "sentence": {arm: functools.partial(call, [SENTENCE]) for arm, call in one_by_one.items()},
            "text": {arm: functools.partial(call, texts) for arm, call in one_by_one.items()},
        }
        self.calls["text"][POOL] = lambda: pooled(texts)

    def __enter__(self) -> Mapping[str, Mapping[str, Callable[[], tuple[float, float, float]]]]:
        return self.calls

    def __exit__(self, *_: object) -> None:
        self._optimizer.close()


def _measured(
    arms: Mapping[str, Mapping[str, Callable[[], tuple[float, float, float]]]],
    options: FeedForwardOptions,
    report: Callable[[str], None],
) -> dict[str, dict[str, list[float | None]]]:
    """Real-time factors, and seconds to the text's first audio, by measure, arm and round."""
    found: dict[str, dict[str, list[float | None]]] = {
        measure: {arm: [] for arm in by_arm} for measure, by_arm in (*arms.items(), ("first", arms["text"]))
    }
    for calls in arms.values():
        for call in calls.values():
            call()  # once before it is timed
    for number in range(options.rounds):
        for measure, calls in arms.items():
            for arm, call in calls.items():
                seconds, audio, first = call()
                found[measure][arm].append(seconds / audio)
                if measure == "text":
                    found["first"][arm].append(first)
                report(f"round {number + 1}, {measure}, {arm}: {seconds:.2f} s for {audio:.2f} s of audio")
    return found


def to_markdown(result: Mapping[str, Any]) -> str:
    """The figures of `run`: medians with quartiles, and quotients round by round."""
    said = f"transformers {result['transformers']}, {result['threads']} threads."
    return document(title(result), figures(result), result, said=[said])


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"VITS of transformers, {result['engine']['size']}, random weights"


def figures(result: Mapping[str, Any]) -> str:
    """The table alone, and what its columns are."""
    titles = {
        "sentence": "real-time factor, one sentence",
        "text": f"real-time factor, {result['plan']['segments']} segments",
        "first": "first audio of these",
    }
    arms = list(result["figures"]["text"])
    rows = [
        [name, *(_cell(result["figures"][measure].get(arm), True) for arm in arms)] for measure, name in titles.items()
    ]
    for measure, name in titles.items():
        for base, by_arm in result["ratios"][measure].items():
            rows.append([f"{name}: times less than `{base}`", *(_cell(by_arm.get(arm), True) for arm in arms)])
    about = (
        "A sentence of 68 letters, and segments of three such. `pytorch-folded` is PyTorch without weight norms "
        "and gradients; `accelerator` speaks one segment after the other on all threads; `accelerator-pool` is a "
        "stream: its first segment is shorter and has all threads, the others have one each."
    )
    return _table(["", *(f"`{arm}`" for arm in arms)], rows) + "\n\n" + about
