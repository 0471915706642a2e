"""What is asked of ONNX Runtime where other execution providers are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import layout
from accelerator.errors import InvalidOption, SessionError
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import ON_CPU, RunOptions
from accelerator.runtime.providers import chains, checked, short, with_settings
from tests.export.convolutions import chain, feed
from tests.runtime.providers import CPU, CUDA, TENSORRT, Providers


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (None, ()),
        ([], ()),
        ("auto", (CUDA, TENSORRT)),
        ([CPU], ()),
        ([TENSORRT, CPU, TENSORRT], (TENSORRT,)),
        (("DmlExecutionProvider",), ("DmlExecutionProvider",)),
    ],
)
def test_providers_are_names(asked: Any, names: tuple[str, ...]) -> None:
    assert checked(asked) == names


@pytest.mark.parametrize("asked", ["cuda", CUDA, 7, [7], ["cuda"], [(CUDA, {})], {"CUDAExecutionProvider": {}}])
def test_what_is_no_name_is_refused(asked: Any) -> None:
    with pytest.raises(InvalidOption, match="provider"):
        checked(asked)


def test_only_what_is_installed_is_tried_and_the_cpu_takes_the_rest() -> None:
    assert chains((CUDA, TENSORRT), (CPU,)) == ()
    assert chains((CUDA, TENSORRT), (TENSORRT, CUDA, CPU)) == ((CUDA, CPU), (TENSORRT, CUDA, CPU))
    assert chains((TENSORRT,), (TENSORRT, CPU)) == ((TENSORRT, CPU),)
    assert [short(each) for each in ((CPU,), (CUDA, CPU), (TENSORRT, CUDA, CPU))] == ["", "cuda", "tensorrt"]


def test_tensorrt_keeps_its_engines_in_the_cache(tmp_path: Path) -> None:
    model, engines = layout.entry_path(tmp_path, "a" * 64) / "graph.onnx", tmp_path / layout.ENGINES
    (own, settings), *others = with_settings((TENSORRT, CUDA, CPU), model, str(engines))
    assert (own, others) == (TENSORRT, [CUDA, CPU])
    assert settings["trt_engine_cache_enable"] == "True"
    assert Path(settings["trt_engine_cache_path"]) == engines / ("a" * 64)
    assert (engines / ("a" * 64)).is_dir()
    assert with_settings((CUDA, CPU), model, str(engines)) == [CUDA, CPU]
    assert with_settings((TENSORRT, CPU), model, "") == [TENSORRT, CPU]


def test_a_session_runs_where_it_should_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Providers(CUDA).use(monkeypatch)
    session = Session(chain(1), RunOptions(providers=(CUDA, CPU)))
    assert not session.opened().may_fall_back
    assert session.run(feed(0))
    assert Session(chain(1)).opened().may_fall_back
    assert runtime.asked == [[CUDA, CPU], [CPU]]
    Providers(CUDA, started=False).use(monkeypatch)
    with pytest.raises(SessionError, match=f"cannot start {CUDA}"):
        Session(chain(1), RunOptions(providers=(CUDA, CPU)))


def test_where_engines_are_kept_is_no_part_of_how_a_part_runs() -> None:
    options = RunOptions(providers=(TENSORRT, CPU), engines="/somewhere")
    assert options == RunOptions(providers=(TENSORRT, CPU))
    assert "engines" not in options.to_dict()
    assert RunOptions.from_dict(options.to_dict()) == options
    assert RunOptions() == ON_CPU
