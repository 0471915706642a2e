"""A proof is a note beside an export: of whoever judges, and of what answers on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import ContentCache
from accelerator.errors import ExportError, ProofFailed
from accelerator.export import component as export
from accelerator.export.component import (
    Built,
    Component,
    export_beside,
    export_best,
    export_component,
    key_fields,
    proof_note,
)
from accelerator.hardware import detect

GOOD: dict[str, Any] = {"passed": True, "bar": {"kl": 1.0}, "kl": 0.5}
BAD: dict[str, Any] = {"passed": False, "bar": {"kl": 1.0}, "kl": 2.5}
AVX2, AVX512 = ("avx2", "fma", "f16c"), ("avx2", "fma", "f16c", "avx512f", "avx512_vnni")


class Machine:
    """An instruction set, kernels, and what proofs say on it; builds and proofs are counted."""

    def __init__(self, isa: tuple[str, ...] = AVX512, kernels: str = "", **reports: dict[str, Any]) -> None:
        self.isa, self.kernels, self.reports = isa, kernels, reports
        self.built: list[str] = []
        self.proven: list[str] = []

    def component(self, **changed: Any) -> Component:
        made = Component(
            "part",
            lambda: "a" * 64,
            {"dim": 4},
            ("int4", "int8", "fp32"),
            self.build,
            self.prove,
            kernels=lambda: self.kernels,
        )
        return replace(made, **changed)

    def build(self, directory: Path, precision: str, progress: Any, *_: Any) -> None:
        self.built.append(precision)
        (directory / "weights.bin").write_text(precision)

    def prove(self, built: Built) -> dict[str, Any]:
        self.proven.append(built.precision)
        assert (built.path / "weights.bin").read_text() == built.precision
        (built.scratch / "float32.bin").write_text("what a proof makes")
        return dict(self.reports.get(built.precision, GOOD))

    def export(self, root: Path, precision: str = "int8", *, proof: Any = "strict", **changed: Any) -> export.Export:
        here = replace(detect(), isa=self.isa)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "detect", lambda: here)
            return export_component(self.component(**changed), precision, ContentCache(root), proof=proof)


def files(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in (root / "v1").rglob("*") if file.is_file()}


def test_another_instruction_set_proves_again_and_builds_nothing(tmp_path: Path) -> None:
    first, second = Machine(AVX512), Machine(AVX2, int8={**GOOD, "kl": 0.7})
    made = first.export(tmp_path)
    before = files(tmp_path)
    found = second.export(tmp_path)
    assert (second.built, second.proven) == ([], ["int8"])
    assert (found.path, found.entry.created) == (made.path, False)
    assert (made.proof["kl"], found.proof["kl"]) == (0.5, 0.7), "each has its own figures"
    assert files(tmp_path) == before, "the export stays as it is"
    assert second.export(tmp_path).proof["kl"] == 0.7
    assert first.export(tmp_path).proof["kl"] == 0.5
    assert (first.proven, second.proven) == (["int8"], ["int8"]), "both are remembered"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_one_machine_uses_what_another_of_its_kind_has_proven(tmp_path: Path) -> None:
    Machine().export(tmp_path)
    other = Machine()
    assert other.export(tmp_path).proof == GOOD
    assert (other.built, other.proven) == ([], [])


def test_a_cache_that_is_only_read_serves_another_instruction_set(tmp_path: Path) -> None:
    Machine(AVX512).export(tmp_path / "shipped")
    here, machine = replace(detect(), isa=AVX2), Machine(AVX2)
    cache = ContentCache(tmp_path / "own", parents=[tmp_path / "shipped"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "detect", lambda: here)
        found = [export_component(machine.component(), "int8", cache) for _ in range(2)]
    assert {each.entry.layer for each in found} == {"parent"}
    assert (machine.built, machine.proven) == ([], ["int8"]), "its note is in the cache that can be written"


def test_a_proof_that_fails_is_remembered_for_its_instruction_set(tmp_path: Path) -> None:
    good, bad = Machine(AVX512), Machine(AVX2, int8=BAD)
    made = good.export(tmp_path)
    for _ in range(2):
        with pytest.raises(ProofFailed) as caught:
            bad.export(tmp_path)
        assert caught.value.report == BAD
    assert (bad.built, bad.proven) == ([], ["int8"])
    assert good.export(tmp_path).path == made.path, "the other still has it"
    assert good.proven == ["int8"]


def test_what_one_rejected_before_it_was_there_another_builds(tmp_path: Path) -> None:
    bad, good = Machine(AVX2, int8=BAD), Machine(AVX512)
    with pytest.raises(ProofFailed):
        bad.export(tmp_path)
    assert good.export(tmp_path).entry.created
    with pytest.raises(ProofFailed):
        bad.export(tmp_path)
    assert (bad.built, bad.proven) == (["int8"], ["int8"])


def test_only_to_be_warned_is_to_have_what_failed_here(tmp_path: Path) -> None:
    made, bad = Machine(AVX512).export(tmp_path), Machine(AVX2, int8=BAD)
    with pytest.warns(RuntimeWarning, match=r"not faithful.*published all the same"):
        assert bad.export(tmp_path, proof="warn").path == made.path
    assert bad.export(tmp_path, proof="warn").proof == BAD
    assert (bad.built, bad.proven) == ([], ["int8"])


def test_the_next_better_precision_where_the_proof_fails_here(tmp_path: Path) -> None:
    Machine(AVX512).export(tmp_path, "int4")
    bad = Machine(AVX2, int4=BAD)
    here = replace(detect(), isa=AVX2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "detect", lambda: here)
        best = export_best(bad.component(), "int4", ContentCache(tmp_path))
    assert (best.precision, bad.built, bad.proven) == ("int8", ["int8"], ["int4", "int8"])
    assert best.rejected == ({"precision": "int4", **BAD},)


def test_each_kind_of_kernels_has_a_proof(tmp_path: Path) -> None:
    made = Machine(kernels="avx512_vnni numba 1").export(tmp_path)
    for kernels in ("", "avx2 numba 1", "avx512_vnni numba 2"):
        machine = Machine(kernels=kernels)
        assert machine.export(tmp_path).path == made.path
        assert (machine.built, machine.proven) == ([], ["int8"]), kernels


def test_another_judge_proves_again_and_builds_nothing(tmp_path: Path) -> None:
    made, later = Machine().export(tmp_path), Machine()
    assert later.export(tmp_path, judges=("accelerator.export.proof",)).path == made.path
    assert (later.built, later.proven) == ([], ["int8"])


def test_another_builder_builds(tmp_path: Path) -> None:
    made, later = Machine().export(tmp_path), Machine()
    assert later.export(tmp_path, builders=("accelerator.parts.graphs",)).path != made.path
    assert (later.built, later.proven) == (["int8"], ["int8"])


def test_a_damaged_export_is_not_judged(tmp_path: Path) -> None:
    """It would fail, and be remembered for that."""
    made, other = Machine(AVX512).export(tmp_path), Machine(AVX2)
    (made.path / "weights.bin").write_text("int4")  # of the same size: only its digest tells
    with pytest.raises(Exception, match="corrupt"):
        other.export(tmp_path)
    assert other.proven == []
    assert other.export(tmp_path).entry.created


def test_a_proof_that_cannot_be_made_is_no_rejection(tmp_path: Path) -> None:
    Machine(AVX512).export(tmp_path)
    broken = Machine(AVX2)
    with pytest.raises(ExportError, match="no memory left"):
        broken.export(tmp_path, prove=raising)
    assert broken.export(tmp_path).proof == GOOD


def raising(built: Built) -> dict[str, Any]:
    raise OSError("no memory left")


def test_notes_go_with_their_entry(tmp_path: Path) -> None:
    machine, cache = Machine(), ContentCache(tmp_path)
    component = machine.component()
    key = export.make_key(**key_fields(component, "int8"))
    export_component(component, "int8", cache)
    assert cache.read_note(key, proof_note(component)) == GOOD
    cache.clear()
    assert cache.read_note(key, proof_note(component)) is None
    assert export_component(component, "int8", cache).entry.created
    assert machine.proven == ["int8", "int8"]


# A component beside another one


def beside(machine: Machine, **changed: Any) -> Component:
    return machine.component(name="prefill", beside="part", precisions=("int4", "int8"), **changed)


def test_what_is_beside_an_export_has_its_precision(tmp_path: Path) -> None:
    machine, seen, cache = Machine(), [], ContentCache(tmp_path)  # type: ignore[var-annotated]

    def prove(built: Built) -> dict[str, Any]:
        seen.append(built.beside)
        return GOOD

    for precision in ("int4", "int8"):
        main = export_component(machine.component(), precision, cache)
        other = export_beside(beside(machine, prove=prove), main, cache)
        assert other is not None
        assert (other.precision, other.path != main.path) == (precision, True)
        assert seen[-1] == main
    assert export_beside(beside(machine), export_component(machine.component(), "fp32", cache), cache) is None


def test_it_is_made_for_the_very_content_of_the_other(tmp_path: Path) -> None:
    """Two machines may build the same key with other scales of a cache, on which both of its graphs must work."""
    machine, keys = Machine(), set()

    def differing(directory: Path, precision: str, progress: Any) -> None:
        (directory / "weights.bin").write_text(precision)
        (directory / "scales.bin").write_text(scale)

    for scale in ("1.0", "1.1", "1.0"):  # noqa: B007 - of what is built
        cache = ContentCache(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        main = export_component(machine.component(build=differing), "int8", cache)
        other = export_beside(beside(machine), main, cache)
        assert other is not None
        keys.add((main.entry.key, other.entry.key))
    assert (len({main for main, _ in keys}), len(keys)) == (1, 2)


def test_the_other_does_without_what_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine, cache = Machine(), ContentCache(tmp_path)
    main = export_component(machine.component(), "int8", cache)
    failing = Machine(int8=BAD)
    for _ in range(2):
        assert export_beside(beside(failing), main, cache) is None
    assert (failing.built, failing.proven) == (["int8"], ["int8"])
    assert "prefill as int8 is not faithful to PyTorch" in caplog.text
    assert "part does without it" in caplog.text
