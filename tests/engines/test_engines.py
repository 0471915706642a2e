from __future__ import annotations

import importlib.metadata
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from accelerator import UniversalOptimizer, engines
from accelerator.engines import ADAPTERS, CHECKPOINTS, Adapter, Bound, adapter_for, adapter_from_checkpoint
from accelerator.engines.base import tensors_digest
from accelerator.engines.passthrough import PassThroughAdapter
from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import BadOutput, EngineError
from accelerator.parts.decoding import check_codes


def test_every_row_of_the_table_names_a_class_of_ours() -> None:
    for target in {**ADAPTERS, **CHECKPOINTS}.values():
        module, _, name = target.partition(":")
        assert module.startswith("accelerator.engines.")
        file = Path(engines.__file__).parent / module.removeprefix("accelerator.engines.").replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__init__.py").is_file(), target
        assert name.isidentifier()


def test_the_reference_engine_and_its_children_are_known(tiny: Any) -> None:
    assert isinstance(adapter_for(tiny), ReferenceAdapter)

    class Child(type(tiny)):  # type: ignore[misc]
        pass

    child = Child(tiny.config, tiny.language_model, tiny.codec)
    adapter = adapter_for(child)
    assert isinstance(adapter, ReferenceAdapter)
    assert isinstance(UniversalOptimizer(child), Child)


def test_adapters_speak_the_protocol(tiny: Any) -> None:
    for adapter in (adapter_for(tiny), adapter_for(lambda text: text)):
        assert isinstance(adapter, Adapter)
        calls = {part.name: part.original for part in adapter.parts()}
        assert isinstance(adapter.bind(calls), Bound)


def test_whoever_is_unknown_is_passed_through() -> None:
    class Speaks:
        def synthesize(self, text: str) -> Any: ...

    assert isinstance(adapter_for(Speaks()), PassThroughAdapter)
    assert isinstance(adapter_for(lambda text: text), PassThroughAdapter)


class Theirs:
    name, sample_rate = "theirs", 8000

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @classmethod
    def from_checkpoint(cls, path: Any, *, size: int = 1) -> Theirs:
        return cls((path, size))


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("their_adapters")
    module.Theirs = Theirs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_adapters", module)
    return module


def test_third_parties_come_through_the_same_door(monkeypatch: pytest.MonkeyPatch, third_party: Any) -> None:
    class Engine:
        pass

    qualified = f"{Engine.__module__}.{Engine.__qualname__}"
    point = importlib.metadata.EntryPoint(qualified, "their_adapters:Theirs", engines.ENTRY_POINTS)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == engines.ENTRY_POINTS else []
    )
    engine = Engine()
    adapter = adapter_for(engine)
    assert isinstance(adapter, Theirs)
    assert adapter.engine is engine


def test_a_row_that_cannot_be_loaded_says_which(monkeypatch: pytest.MonkeyPatch, third_party: Any) -> None:
    class Engine:
        pass

    qualified = f"{Engine.__module__}.{Engine.__qualname__}"
    for target in ("no_such_module:Adapter", "their_adapters:Missing"):
        monkeypatch.setitem(ADAPTERS, qualified, target)
        with pytest.raises(EngineError, match=f"the adapter {target} cannot be loaded"):
            adapter_for(Engine())


def test_checkpoints(monkeypatch: pytest.MonkeyPatch, third_party: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(CHECKPOINTS, "theirs", "their_adapters:Theirs")
    adapter: Any = adapter_from_checkpoint("theirs", tmp_path, size=3)
    assert adapter.engine == (tmp_path, 3)
    with pytest.raises(EngineError, match=r"no engine called 'x'; choose one of .*theirs"):
        adapter_from_checkpoint("x", tmp_path)


def test_a_digest_of_tensors() -> None:
    import torch

    a, b = torch.arange(6.0), torch.ones(2, 3)
    digest = tensors_digest([("a", a), ("b", b)])
    assert len(digest) == 64
    assert tensors_digest([("b", b), ("a", a)]) == digest, "of no order"
    assert tensors_digest([("a", a.clone()), ("b", torch.ones(3, 2).T)]) == digest, "nor layout in memory"
    others = [
        [("a", b), ("b", a)],
        [("a", a), ("b", b.reshape(3, 2))],
        [("a", a.double()), ("b", b)],
        [("a", a)],
        [("a", torch.cat([a[:5], torch.tensor([5.0000005])])), ("b", b)],
        [("a", a.bfloat16()), ("b", b)],
    ]
    digests = {tensors_digest(tensors) for tensors in others}
    assert len(digests | {digest}) == len(others) + 1
    assert tensors_digest([("empty", torch.zeros(0))]) != tensors_digest([("empty", torch.zeros(0, 3))])
    assert tensors_digest([("scalar", torch.tensor(1.0))])


def test_codes_that_cannot_be_right() -> None:
    import numpy as np

    check_codes(np.array([[0, 63]]), 64)
    check_codes(np.array([[0, 999]]))
    for codes, size in ((np.zeros((4, 0)), 64), (np.array([[-1]]), None), (np.array([[64]]), 64)):
        with pytest.raises(BadOutput):
            check_codes(codes, size)
