from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import ContentCache
from accelerator.errors import BadOutput, ExportError, ProofFailed
from accelerator.export import component as export
from accelerator.export.component import (
    Built,
    Component,
    ProgressEvent,
    export_best,
    export_component,
    key_fields,
    proof_note,
)
from tests import ROOT


class Fake:
    """A component whose builds and proofs are counted; `reports` says what the proof of a precision answers."""

    def __init__(self, **reports: Any) -> None:
        self.reports, self.built, self.proven = reports, [], []  # type: ignore[var-annotated]

    def component(self, **changed: Any) -> Component:
        fields = {
            "name": "part",
            "identity": lambda: "a" * 64,
            "config": {"dim": 4},
            "precisions": ("int4", "int8", "fp32"),
            "build": self.build,
            "prove": self.prove,
            "recipes": {"int4": {"bits": 4}},
        }
        return Component(**{**fields, **changed})

    def build(self, directory: Path, precision: str, progress: Any) -> None:
        self.built.append(precision)
        progress(ProgressEvent("part", "build", 1, 1, precision))
        (directory / "weights.bin").write_text(precision)

    def prove(self, built: Built) -> dict[str, Any]:
        self.proven.append(built.precision)
        assert (built.path / "weights.bin").read_text() == built.precision
        report = self.reports.get(built.precision, {"passed": True, "bar": {"kl": 1.0}, "kl": 0.5})
        if isinstance(report, BaseException):
            raise report
        return dict(report)


REJECTED = {"passed": False, "bar": {"kl": 1.0}, "kl": 2.5}


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "cache")


def test_an_export_is_built_proven_published_and_found_again(cache: ContentCache) -> None:
    fake, events = Fake(), []  # type: ignore[var-annotated]
    first = export_component(fake.component(), "int8", cache, progress=events.append)
    assert [e.stage for e in events] == ["hash", "build", "prove"]
    assert {e.precision for e in events} == {"int8"}
    assert (first.precision, first.rejected, first.entry.created) == ("int8", (), True)
    assert (first.path / "weights.bin").read_text() == "int8"
    assert first.proof == {"passed": True, "bar": {"kl": 1.0}, "kl": 0.5}
    manifest = json.loads((first.path / "manifest.json").read_text())
    assert manifest["meta"] == {"precision": "int8"}, "what a proof says is beside the entry"
    assert manifest["fields"]["weights"] == "a" * 64
    events.clear()
    again = export_component(fake.component(), "int8", ContentCache(cache.root), progress=events.append)
    assert [e.stage for e in events] == ["hash"]
    assert again.entry.created is False
    assert again.path == first.path
    assert (fake.built, fake.proven) == (["int8"], ["int8"])


def test_the_next_better_precision_is_tried_and_the_figures_kept(cache: ContentCache) -> None:
    fake = Fake(int4=REJECTED, int8={**REJECTED, "kl": 1.5})
    best = export_best(fake.component(), "int4", cache)
    assert fake.built == ["int4", "int8", "fp32"]
    assert best.precision == "fp32"
    assert best.rejected == ({"precision": "int4", **REJECTED}, {"precision": "int8", **REJECTED, "kl": 1.5})
    assert len(cache.entries()) == 1, "what is rejected is not published"


def test_what_was_rejected_is_not_built_again(cache: ContentCache) -> None:
    fake = Fake(int4=REJECTED)
    export_best(fake.component(), "int4", cache)
    again = export_best(fake.component(), "int4", ContentCache(cache.root))
    assert fake.built == ["int4", "int8"]
    assert again.precision == "int8"
    assert again.rejected == ({"precision": "int4", **REJECTED},)
    export_best(fake.component(config={"dim": 5}), "int4", cache)
    assert fake.built == ["int4", "int8", "int4", "int8"], "but another component is"


@pytest.mark.parametrize("note", [{}, {"passed": True}, {"something": "else"}])
def test_a_note_that_rejects_nothing_is_ignored(cache: ContentCache, note: dict[str, Any]) -> None:
    fake = Fake()
    component = fake.component()
    cache.write_note(export.make_key(**key_fields(component, "int8")), proof_note(component), note)
    assert export_component(fake.component(), "int8", cache).entry.created


def test_all_rejected(cache: ContentCache) -> None:
    fake = Fake(int4=REJECTED, int8=REJECTED, fp32={**REJECTED, "kl": 9.0})
    with pytest.raises(ProofFailed, match=r"part as fp32 is not faithful to PyTorch \(kl 9; bar") as caught:
        export_best(fake.component(), "int4", cache)
    assert caught.value.report == {**REJECTED, "kl": 9.0}
    assert cache.entries() == []
    with pytest.raises(ProofFailed):
        export_best(fake.component(), "int4", cache)
    assert len(fake.built) == 3


@pytest.mark.parametrize(
    ("asked", "offered", "tried"),
    [
        ("int4", ("int4", "int8", "fp32"), ["int4", "int8", "fp32"]),
        ("int8", ("int4", "int8", "fp32"), ["int8", "fp32"]),
        ("fp32", ("int4", "int8", "fp32"), ["fp32"]),
        ("int4", ("fp32",), ["fp32"]),
        ("int8", ("fp32", "int4"), ["fp32"]),
        ("fp32", ("int4", "int8"), ["int8"]),
    ],
)
def test_precisions_tried(cache: ContentCache, asked: str, offered: tuple[str, ...], tried: list[str]) -> None:
    fake = Fake(int4=REJECTED, int8=REJECTED, fp32=REJECTED)
    with pytest.raises(ProofFailed):
        export_best(fake.component(precisions=offered), asked, cache)
    assert fake.built == tried


def test_figures_that_are_no_numbers_are_kept_as_text(cache: ContentCache) -> None:
    nan = {"passed": False, "bar": {"kl": 1.0}, "kl": float("nan"), "main": {"max_error": float("inf")}}
    fake = Fake(int4=nan, int8=BadOutput("logits are not finite"))
    expected = (
        {"precision": "int4", "passed": False, "bar": {"kl": 1.0}, "kl": "nan", "main": {"max_error": "inf"}},
        {"precision": "int8", "passed": False, "error": "logits are not finite"},
    )
    assert export_best(fake.component(), "int4", cache).rejected == expected
    assert export_best(fake.component(), "int4", cache).rejected == expected
    assert fake.built == ["int4", "int8", "fp32"]


def test_a_precision_that_cannot_be_built_is_no_reason_to_give_up(cache: ContentCache) -> None:
    fake = Fake()

    def build(directory: Path, precision: str, progress: Any) -> None:
        if precision == "int4":
            raise ValueError("odd shapes")
        fake.build(directory, precision, progress)

    best = export_best(fake.component(build=build), "int4", cache)
    assert best.precision == "int8"
    assert best.rejected[0]["error"] == "part could not be exported as int4: odd shapes"


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), AssertionError("x")])
@pytest.mark.parametrize("where", ["build", "prove"])
def test_whatever_the_exporter_raises_is_an_export_error(cache: ContentCache, where: str, error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with pytest.raises(ExportError, match="part could not be exported as fp32") as caught:
        export_component(Fake().component(**{where: fail}), "fp32", cache)
    assert caught.value.__cause__ is error
    assert cache.entries() == []


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), ExportError("mine")])
def test_some_errors_pass_as_they_are(cache: ContentCache, error: BaseException) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        export_component(Fake().component(build=fail), "fp32", cache)
    assert caught.value is error
    assert cache.entries() == []
    assert export_component(Fake().component(), "fp32", cache).entry.created


def test_warn_publishes_and_says_so(cache: ContentCache) -> None:
    fake = Fake(int4={**REJECTED, "kl": float("inf")})
    with pytest.warns(RuntimeWarning, match=r"not faithful.*published all the same because of proof='warn'"):
        published = export_best(fake.component(), "int4", cache, proof="warn")
    assert (published.precision, published.proof["passed"], published.proof["kl"]) == ("int4", False, "inf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export_best(fake.component(), "int4", cache, proof="warn").entry.created is False
    strict = export_best(fake.component(), "int4", cache)
    assert strict.precision == "int8", "what was only warned about is not good enough for strict"
    assert strict.rejected[0]["kl"] == "inf"
    assert fake.built == ["int4", "int8"]


def test_warn_after_strict_builds_what_strict_rejected(cache: ContentCache) -> None:
    fake = Fake(int4=REJECTED)
    export_best(fake.component(), "int4", cache)
    with pytest.warns(RuntimeWarning):
        assert export_best(fake.component(), "int4", cache, proof="warn").precision == "int4"


def test_strict_does_not_take_what_a_warning_process_publishes_meanwhile(cache: ContentCache) -> None:
    fake, other = Fake(int8=REJECTED), ContentCache(cache.root)
    get, calls = cache.get, 0

    def late(key: str, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # between the look-up and the build
            with pytest.warns(RuntimeWarning):
                export_component(fake.component(), "int8", other, proof="warn")
        return get(key, **options)

    cache.get = late  # type: ignore[method-assign]
    with pytest.raises(ProofFailed):
        export_component(fake.component(), "int8", cache)


# The key


CHANGES: dict[str, Callable[[Component], Component]] = {
    "weights": lambda c: replace(c, identity=lambda: "b" * 64),
    "config": lambda c: replace(c, config={"dim": 5}),
    "a further option": lambda c: replace(c, config={"dim": 4, "eps": 1e-5}),
    "name": lambda c: replace(c, name="other"),
    "recipe": lambda c: replace(c, recipes={"int4": {"bits": 4, "block": 64}}),
}


def key(component: Component, precision: str = "int4") -> str:
    return export.make_key(**key_fields(component, precision))


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_knows(change: str) -> None:
    component = Fake().component()
    assert key(component) == key(Fake().component())
    assert key(CHANGES[change](component)) != key(component)


def test_the_key_knows_precision_versions_operators_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    component = Fake().component()
    before = key(component)
    assert key(component, "int8") != before
    assert set(key_fields(component, "int4")["versions"]) == {"onnxruntime", "torch", "onnx", "onnxscript"}
    with monkeypatch.context() as patch:
        patch.setattr(export, "OPSET", 21)
        assert key(component) != before
    with monkeypatch.context() as patch:
        patch.setattr(export, "_FORMAT", 99)
        assert key(component) != before
    for package in ("onnxruntime", "torch"):
        with monkeypatch.context() as patch:
            versions = {**export._versions(), package: "0.0.1"}
            patch.setattr(export, "_versions", lambda versions=versions: versions)
            assert key(component) != before


def test_the_key_knows_what_no_weight_shows(tiny: Any) -> None:
    """A codec's windows and the like."""
    from accelerator.engines.reference import ReferenceAdapter
    from accelerator.reference import ReferenceEngine

    def components(engine: Any) -> dict[str, Component]:
        return {c.name: c for part in ReferenceAdapter(engine).parts() for c in part.components}

    found = components(tiny)
    codec = tiny.config.codec
    stack = replace(codec.quantizer.transformer, window=9)
    wider = replace(codec, quantizer=replace(codec.quantizer, transformer=stack))
    other = components(ReferenceEngine(replace(tiny.config, codec=wider), tiny.language_model, tiny.codec))
    for name in ("encoder", "decoder"):
        assert key(other[name], "fp32") != key(found[name], "fp32"), "same weights, another window"
    assert key(other["text2semantic"], "fp32") == key(found["text2semantic"], "fp32")


def test_identities_are_the_weights(tiny: Any) -> None:
    from accelerator.engines.reference import ReferenceAdapter
    from accelerator.reference import load

    def identities(engine: Any) -> dict[str, str]:
        return {c.name: c.identity() for part in ReferenceAdapter(engine).parts() for c in part.components}

    before, changed = identities(tiny), load("tiny")
    assert identities(changed) == before
    changed.language_model.norm.weight.data[3] += 1e-3
    after = identities(changed)
    assert {n for n in before if after[n] != before[n]} - {"prefill"} == {"embeddings", "text2semantic"}
    changed = load("tiny")
    next(changed.codec.parameters()).data.view(-1)[0] += 1e-3
    after = identities(changed)
    assert {n for n in before if after[n] != before[n]} == {"encoder", "decoder"}


# Threads and processes


def test_threads_build_once(cache: ContentCache) -> None:
    fake, gate, found = Fake(), threading.Barrier(6), []  # type: ignore[var-annotated]

    def work() -> None:
        gate.wait()
        found.append(export_component(fake.component(), "fp32", cache).path)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.built == ["fp32"]
    assert len(found) == 6
    assert len(set(found)) == 1


PROCESS = """
import sys
from pathlib import Path
from accelerator.cache import ContentCache
from accelerator.export.component import Component, export_best
log = Path(sys.argv[2])
def build(directory, precision, progress):
    with log.open("a") as file:
        file.write(precision + "\\n")
    (directory / "weights.bin").write_text(precision)
def prove(built):
    return {"passed": built.precision != "int4", "bar": {}, "kl": 1.0}
part = Component("part", lambda: "0" * 64, {}, ("int4", "int8", "fp32"), build, prove)
best = export_best(part, "int4", ContentCache(sys.argv[1]))
print(best.precision, best.rejected[0]["precision"], best.entry.created)
"""


def test_builds_are_called_once_over_two_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    answers = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", PROCESS, str(tmp_path / "cache"), str(log)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert answers == [["int8", "int4", "True"], ["int8", "int4", "False"]]
    assert log.read_text().split() == ["int4", "int8"]


@pytest.mark.parametrize("proof", ["strict", "warn"])
def test_a_cache_that_cannot_be_written_still_exports(tmp_path: Path, proof: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    fake, cache = Fake(int4=REJECTED), ContentCache(tmp_path / "file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        export_ = export_best(fake.component(), "int4", cache, proof=proof)
        assert export_.precision == ("int8" if proof == "strict" else "int4")
        assert export_.entry.ephemeral
        assert export_best(fake.component(), "int4", cache, proof=proof).path == export_.path
