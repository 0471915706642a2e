"""A checkout's packages are imported apart: nobody else sees them, and they see nobody else's."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.engines.mockingbird.checkout import Checkout, checkout_of
from accelerator.errors import EngineError
from tests.engines.mockingbird.checkpoints import LAYOUTS

TOPS = ("models", "utils", "encoder", "synthesizer", "vocoder")


def seen() -> set[str]:
    return {name for name in sys.modules if name.partition(".")[0] in TOPS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nobody_else_sees_its_packages(files: Any, layout: str) -> None:
    before, path = seen(), list(sys.path)
    own = Checkout(files(layout)[0])
    assert own.module("synthesizer.inference").hparams is own.module("synthesizer.hparams").hparams
    assert (seen(), sys.path) == (before, path)
    again = Checkout(files(layout)[0]).module("synthesizer.hparams")
    assert again.hparams is not own.module("synthesizer.hparams").hparams


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_does_not_see_anybody_elses(files: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: types.ModuleType(name) for name in TOPS}
    for name, other in others.items():
        monkeypatch.setitem(sys.modules, name, other)
    assert Checkout(files(layout)[0]).module("vocoder.hifigan.inference").Generator is not None
    assert all(sys.modules[name] is other for name, other in others.items())


def test_numpy_is_not_changed_for_wavernn(files: Any) -> None:
    had = hasattr(np, "cumproduct")
    model = Checkout(files("new")[0]).module("vocoder.wavernn.inference").WaveRNN(20, 16_000)
    assert model.scale == 20
    assert hasattr(np, "cumproduct") == had


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_tells_its_checkout(files: Any, layout: str) -> None:
    root = files(layout)[0].resolve()
    found = checkout_of(Checkout(root).module("synthesizer.inference").__file__)
    assert (found.root, found.prefix) == (root, {"new": "models.", "old": ""}[layout])
    assert found.file("vocoder/hifigan/models.py").is_file()


@pytest.mark.parametrize(("layout", "place"), [("new", "data/ckpt/vocoder/mine"), ("old", "vocoder/saved_models")])
def test_the_only_checkpoint_in_its_folder_is_found(files: Any, tmp_path: Path, layout: str, place: str) -> None:
    needed = tmp_path / ("models" if layout == "new" else "") / "synthesizer" / "inference.py"
    needed.parent.mkdir(parents=True)
    needed.touch()
    (tmp_path / place).mkdir(parents=True)
    with pytest.raises(EngineError, match=r"there is no single vocoder in .*: say which one, vocoder=FILE"):
        Checkout(tmp_path).checkpoint("vocoder")
    (tmp_path / place / "g.pt").touch()
    assert Checkout(tmp_path).checkpoint("vocoder") == tmp_path.resolve() / place / "g.pt"
    (tmp_path / place / "h.pt").touch()
    with pytest.raises(EngineError, match=r"but 2 \.pt files"):
        Checkout(tmp_path).checkpoint("vocoder")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no checkout of MockingBird, it has neither models/synthesizer"):
        Checkout(tmp_path)


def test_what_a_checkout_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / "synthesizer").mkdir()
    (tmp_path / "synthesizer" / "inference.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(EngineError, match=r"No module named 'a_package_that_nobody_has'\): pip install"):
        Checkout(tmp_path).module("synthesizer.inference")
