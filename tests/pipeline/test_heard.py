"""Verdicts of listening tests: found again by whoever runs exactly what was heard, and by nobody else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accelerator.cache import ContentCache
from accelerator.parts.part import Part
from accelerator.pipeline.fallback import Route
from accelerator.pipeline.heard import described, recalled, remember
from accelerator.pipeline.selection import Choice
from accelerator.runtime.options import RunOptions

NOTE = {
    "engine": "piper",
    "checkpoint": "voice.onnx",
    "sentences": 200,
    "recogniser": "moonshine",
    "verdict": "pass",
    "word_error_rate": [0.001, -0.002, 0.0041],
    "opinion": [-0.01, -0.02, 0.004],
    "heard_at": 1.0,
}


def route(name: str, choice: Choice | None, stage: Any = "generate") -> Route:
    made = Route(Part(name, stage, original=abs, probe=lambda call: 0.0), lambda part: Choice(None, ""))
    if choice is not None:
        made.prepare(lambda part: choice)
    return made


def runs(key: str, **options: Any) -> Choice:
    export: Any = SimpleNamespace(entry=SimpleNamespace(key=key))
    return Choice(abs, "fastest", options=RunOptions(**options), exports={"graph": export})


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path)


def test_it_holds_for_these_exports_on_these_backends(cache: ContentCache) -> None:
    routes = {"text": route("text", runs("a")), "decoder": route("decoder", runs("b"))}
    assert recalled(cache, "piper", routes) is None
    assert remember(cache, "piper", routes, NOTE)
    assert recalled(cache, "piper", routes) == NOTE
    others = {
        "another export": runs("c"),
        "another backend": runs("b", backend="onednn"),
        "other multiplication": runs("b", dtype="bf16"),
        "the original": Choice(None, "slower"),
        "not decided": None,
    }
    for why, choice in others.items():
        assert recalled(cache, "piper", {**routes, "decoder": route("decoder", choice)}) is None, why
    assert recalled(cache, "kokoro", routes) is None


def test_threads_and_what_only_recordings_need_do_not_matter(cache: ContentCache) -> None:
    routes = {"text": route("text", runs("a", threads=2)), "encoder": route("encoder", None, "reference")}
    assert remember(cache, "fish-speech", routes, NOTE)
    later = {"text": route("text", runs("a", threads=1)), "encoder": route("encoder", runs("e"), "reference")}
    assert recalled(cache, "fish-speech", later) == NOTE


def test_there_is_nothing_to_keep_where_the_original_speaks(cache: ContentCache) -> None:
    assert not remember(cache, "piper", {"text": route("text", Choice(None, "slower"))}, NOTE)


def test_a_line_says_all_of_it() -> None:
    assert described(NOTE) == (
        "pass: word error rate +0.1 points [-0.2, +0.4] by moonshine, DNSMOS -0.01 [-0.02, +0.00], 200 sentences"
    )
    with pytest.raises(KeyError):
        described({"verdict": "pass"})
