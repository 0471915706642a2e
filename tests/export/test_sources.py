"""What a key and a proof are made of: every file that computes changes exactly those that come from it."""

from __future__ import annotations

import ast
import functools
import io
import sys
import tokenize
from collections.abc import Container, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import accelerator
from accelerator.engines.reference import ReferenceAdapter
from accelerator.export import sources
from accelerator.export.component import Component

PACKAGE = Path(accelerator.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """File -> what is made of its text, wherever sources are read."""
    changes: dict[str, Any] = {}
    read, said = sources._read, sources._said

    def changed(file: Path) -> str:
        return str(changes.get(file.relative_to(PACKAGE).as_posix(), str)(read(file)))

    def anew(name: str, file: Path) -> Any:
        """What is changed is not remembered."""
        is_changed = file.is_relative_to(PACKAGE) and file.relative_to(PACKAGE).as_posix() in changes
        return said.__wrapped__(name, file) if is_changed else said(name, file)

    monkeypatch.setattr(sources, "remembered", lambda _, find: find()[0])
    monkeypatch.setattr(sources, "_read", changed)
    monkeypatch.setattr(sources, "_said", anew)
    yield changes
    sources._digest.cache_clear()


@pytest.fixture
def components(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Component]:
    monkeypatch.setattr("accelerator.parts.language_model.wants_prefill", lambda: True)
    return {c.name: c for part in ReferenceAdapter(tiny).parts() for c in part.components}


@pytest.fixture
def rewrites() -> dict[str, Component]:
    """Of engines whose own packages need not be there."""
    fish = pytest.importorskip("accelerator.engines.fish_speech.rewrite")
    from accelerator.engines.fish_speech import codec, examples
    from accelerator.parts.traced import traced

    example = functools.partial(examples.examples, "decoder", lambda: None, "decode", 4)
    direction = functools.partial(codec.direction, "decoder", lambda: None)
    return {
        "rewrite": fish.component("decoder", lambda: None, lambda: "", {}, example),
        "traced": traced("decoder", direction, lambda: "", {}, inputs={}, outputs=(), examples=example),
    }


def digests(components: dict[str, Component]) -> dict[str, tuple[str, str]]:
    sources._digest.cache_clear()
    return {
        name: (sources.digest(c.build, *c.builders), sources.digest(c.prove, *c.judges))
        for name, c in components.items()
    }


def differences(
    components: dict[str, Component], changes: dict[str, Any], place: str, change: Any
) -> tuple[set[str], set[str]]:
    """The components whose key changes with a file, and those whose judges do."""
    before = digests(components)
    changes[place] = change
    after = digests(components)
    del changes[place]
    return tuple({n for n in before if before[n][i] != after[n][i]} for i in (0, 1))  # type: ignore[return-value]


def another(text: str) -> str:
    return text + "\nanother = 1\n"


TABLES, LM, BESIDE = {"embeddings"}, {"text2semantic"}, {"prefill"}
MODEL, CODEC = TABLES | LM | BESIDE, {"encoder", "decoder"}
WHAT: dict[str, tuple[set[str], set[str]]] = {
    "engines/reference/weights.py": (MODEL, MODEL),
    "engines/reference/examples.py": (LM | CODEC, LM | BESIDE | CODEC),
    "engines/reference/adapter.py": (set(), set()),
    "engines/reference/stages.py": (set(), set()),
    "engines/fish_speech/codec.py": (set(), set()),
    "reference/codec.py": (CODEC, set()),
    "reference/transformer.py": (CODEC, set()),
    "export/graph/dual_ar.py": (MODEL, MODEL),
    "export/graph/fitting.py": (MODEL, MODEL),
    "export/graph/graph.py": (MODEL, MODEL),
    "export/graph/quantize.py": (MODEL, MODEL),
    "export/graph/rewrite.py": (CODEC, CODEC),
    "export/graph/stored.py": (set(), MODEL),
    "export/tracing.py": (CODEC, CODEC),
    "export/proof.py": (set(), MODEL | CODEC),
    "export/component.py": (set(), set()),
    "parts/graphs.py": (MODEL, MODEL),
    "parts/language_model.py": (set(), MODEL),
    "parts/modules.py": (CODEC, CODEC),
    "parts/traced.py": (set(), CODEC),
    "inference/embeddings.py": (MODEL, MODEL),
    "inference/batcher.py": (set(), MODEL),
    "inference/sampling.py": (set(), MODEL),
    "inference/compiled.py": (set(), MODEL),
    "inference/frame_loop.py": (set(), MODEL),
    "kernels/features.py": (set(), MODEL),
    "kernels/compiler.py": (set(), MODEL),
    "kernels/instructions.py": (set(), MODEL),
    "kernels/llm/step.py": (set(), MODEL),
    "kernels/units/step.py": (set(), MODEL),
    "kernels/conv/filtering.py": (set(), MODEL),
    "cache/store.py": (set(), set()),
    "hardware/profile.py": (set(), set()),
    "runtime/onnx.py": (set(), set()),
    "pipeline/selection.py": (set(), set()),
    "errors.py": (set(), set()),
}


@pytest.mark.parametrize("place", WHAT)
def test_a_file_changes_exactly_what_comes_from_it(
    components: dict[str, Component], rewritten: dict[str, Any], place: str
) -> None:
    assert (PACKAGE / place).is_file()
    assert differences(components, rewritten, place, another) == WHAT[place]


@pytest.mark.parametrize(
    ("place", "built", "judged"),
    [
        ("engines/fish_speech/codec.py", {"rewrite", "traced"}, {"rewrite"}),
        ("engines/fish_speech/structure.py", {"rewrite", "traced"}, {"rewrite", "traced"}),
        ("engines/fish_speech/stored.py", {"rewrite"}, {"rewrite"}),
        ("engines/fish_speech/rewrite.py", set(), {"rewrite"}),
        ("engines/fish_speech/examples.py", {"traced"}, {"rewrite", "traced"}),
        ("engines/fish_speech/adapter.py", set(), set()),
        ("codec/polyphase.py", {"rewrite"}, {"rewrite"}),
        ("codec/layers.py", set(), {"rewrite"}),
        ("codec/dense.py", set(), {"rewrite"}),
        ("codec/winograd.py", set(), {"rewrite"}),
        ("kernels/conv/blocks.py", set(), {"rewrite"}),
        ("kernels/conv/ordering.py", set(), {"rewrite"}),
        ("kernels/llm/step.py", set(), set()),
        ("export/tracing.py", {"traced"}, {"traced"}),
    ],
)
def test_what_a_rewrite_comes_from(
    rewrites: dict[str, Component], rewritten: dict[str, Any], place: str, built: set[str], judged: set[str]
) -> None:
    assert differences(rewrites, rewritten, place, another) == (built, judged)


def test_nothing_that_runs_or_judges_is_in_a_key(
    components: dict[str, Component], rewrites: dict[str, Component]
) -> None:
    """A decode loop, a kernel or a bar that is changed must not export anew what took ten minutes."""
    for component in (*components.values(), *rewrites.values()):
        for name in sources.modules(component.build, *component.builders):
            room = name.removeprefix("accelerator.")
            assert not room.startswith(("kernels", "export.proof")), (component.name, name)
            assert not room.startswith("inference") or room == "inference.embeddings", (component.name, name)


def test_a_comment_changes_nothing(components: dict[str, Component], rewritten: dict[str, Any]) -> None:
    """Nor does a docstring or an empty line, in any file."""
    before = digests(components)

    def commented(text: str) -> str:
        text = text.replace("from __future__", "# of another kind\n\nfrom __future__", 1)
        return text.replace('"""', '"""Otherwise said. ', 1) + "\n\n# The end.\n"

    for file in FILES:
        place = file.relative_to(PACKAGE).as_posix()
        text = file.read_text(encoding="utf-8")
        if text.startswith('"""'):
            rewritten[place] = commented
            assert commented(text) != text
    assert len(rewritten) > 200
    assert digests(components) == before


def test_an_import_that_is_new_is_followed(components: dict[str, Component], rewritten: dict[str, Any]) -> None:
    """Also within a function, and through a package's own names to the file that defines them."""
    place = "parts/graphs.py"
    rewritten[place] = lambda text: text.replace(
        "        slow, fast = prefill_names()\n",
        "        from ..kernels import Filter\n\n        slow, fast = prefill_names()\n",
    )
    names = sources.modules(components["prefill"].build)
    assert "accelerator.kernels.conv.layers" in names
    assert "accelerator.kernels" not in names, "what defines it, and not the package that passes it on"
    assert differences(components, rewritten, "kernels/conv/layers.py", another)[0] == MODEL


def test_what_only_type_checkers_read_is_no_import() -> None:
    names = sources.modules("accelerator.engines.fish_speech.language_model")
    assert "accelerator.engines.fish_speech.layouts" not in names
    assert "accelerator.engines.fish_speech.structure" in names


def test_foreign_files_count_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "modeling_other.py"
    monkeypatch.setitem(sys.modules, "modeling_other", SimpleNamespace(__file__=str(file)))  # type: ignore[arg-type]

    def digest_of(text: str) -> str:
        file.write_text(text)
        for memory in (sources._file, sources._said, sources._digest):
            memory.cache_clear()
        return sources.digest("modeling_other", "accelerator.parts.graphs")

    before = digest_of("import json\na = 1\n")
    assert before != sources.digest("accelerator.parts.graphs")
    assert digest_of("import json\n\na = 1  # one\n") == before
    assert digest_of("import json\na = 2\n") != before
    sources._file.cache_clear()


UNITS = {file.stem for file in (PACKAGE / "kernels" / "units").glob("*.py")} - {"__init__"}
LAYERS = {"filter", "mix", "dense", "quantize", "single", "snake", "gelu", "order"}
KERNELS: dict[str, set[str]] = {
    "kernels/compiler.py": UNITS,
    "kernels/features.py": UNITS,
    "kernels/vectors.py": UNITS,
    "kernels/instructions.py": UNITS,
    "kernels/scalars.py": UNITS - {"pack"},
    "kernels/parts.py": (LAYERS - {"quantize"}) | {"chain", "dots"},
    "kernels/job.py": UNITS,
    "kernels/arithmetic.py": {"step"},
    "kernels/barrier.py": {"step"},
    "kernels/opcodes.py": {"step"},
    "kernels/llm/step.py": {"step"},
    "kernels/llm/attention.py": {"step"},
    "kernels/llm/quantized.py": {"step"},
    "kernels/llm/drawing.py": {"step"},
    "kernels/llm/packing.py": {"pack"},
    "kernels/conv/activation.py": {"snake", "filter", "mix", "order", "chain", "dots"},
    "kernels/conv/blocks.py": {"filter", "mix", "dense", "quantize", "single", "chain", "dots"},
    "kernels/conv/chain.py": {"chain", "dots"},
    "kernels/conv/amx.py": {"chain"},
    "kernels/conv/dots.py": {"dots"},
    "kernels/conv/dense.py": {"dense", "quantize", "single"},
    "kernels/conv/filtering.py": {"filter", "mix"},
    "kernels/conv/gaussian.py": {"gelu"},
    "kernels/conv/ordering.py": {"order"},
    "kernels/units/mix.py": {"mix"},
    "kernels/llm/team.py": set(),  # threads are no machine code
    "kernels/parallel.py": set(),
    "kernels/conv/layers.py": set(),
    "kernels/check.py": set(),
}


@pytest.mark.parametrize("place", KERNELS)
def test_an_edit_recompiles_the_units_that_import_it(rewritten: dict[str, Any], place: str) -> None:
    def keys() -> dict[str, str]:
        sources._digest.cache_clear()
        return {unit: sources.digest(f"accelerator.kernels.units.{unit}") for unit in UNITS}

    assert (PACKAGE / place).is_file()
    before = keys()
    rewritten[place] = another
    assert {unit for unit, key in keys().items() if key != before[unit]} == KERNELS[place]


def test_all_that_is_compiled_is_in_a_units_key() -> None:
    names = set().union(*(sources.modules(f"accelerator.kernels.units.{unit}") for unit in UNITS))
    for file in (PACKAGE / "kernels").rglob("*.py"):
        if {"from numba import njit", "import numba"} & set(file.read_text(encoding="utf-8").splitlines()):
            assert ".".join(("accelerator", *file.relative_to(PACKAGE).with_suffix("").parts)) in names, file


CODE = '''"""A file."""

import os  # of the system


class A:
    """What it is."""

    text = """ # no comment

    here """ + 'a # b'  # but here

    def f(self):
        "Alone."
        # nothing
        return os.name, "\\"#", '#\\''  # both

    b = 1
    """What b is."""
'''
BARE = '''import os
class A:
    text = """ # no comment

    here """ + 'a # b'
    def f(self):
        return os.name, "\\"#", '#\\''
    b = 1'''


def test_what_counts_of_a_text() -> None:
    assert sources.code(CODE) == BARE
    assert sources.code(BARE) == BARE
    assert sources.code('é = \'ü\'; """ä"""; b = 1\n') == "é = 'ü'; ; b = 1"
    assert sources.code("a = (1,  # one\n\n    2)\n") == "a = (1,\n    2)"


def test_what_counts_says_the_same() -> None:
    """Every file of the package, word by word."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert words(sources.code(text)) == words(text, alone(text)), file


def alone(text: str) -> set[int]:
    """The lines in which strings that stand alone begin."""
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr))
    return {n.lineno for n in nodes if isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)}


def words(text: str, without: Container[int] = ()) -> list[str]:
    """A text's words, without the strings that begin in some lines."""
    left = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        string = token.type == tokenize.STRING and token.start[0] in without
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING) and not string:
            left.append(token.string)
    return left
