"""A checkout of MockingBird, its packages imported apart from everybody else's.

They are called `models` and `utils`, or before 2022-12 `encoder`, `synthesizer`, `vocoder` and `utils`: names that
other code has, too. And they keep hyperparameters and models in globals. So each `Checkout` has instances of its own,
which no `import` of anybody else finds.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import EngineError
from ...hardware.forks import Lock

__all__ = ["GANS", "Checkout", "checkout_of"]

GANS = ("hifigan", "fregan")
_importing = Lock()  # what is imported, and where from, is one for the whole process
_NEEDED = "synthesizer/inference.py"


class Checkout:
    """root: the folder with README.md. Raises EngineError for one that is no checkout of MockingBird."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        places = [place for place in ("models", "") if (self.root / place / _NEEDED).is_file()]
        if not places:
            raise EngineError(
                f"{self.root} is no checkout of MockingBird, it has neither models/{_NEEDED} nor {_NEEDED}: git clone "
                "https://github.com/babysor/MockingBird"
            )
        self.prefix = f"{places[0]}." if places[0] else ""
        self._tops = {each.stem for each in self.root.iterdir() if each.is_dir() or each.suffix == ".py"}
        self._own: dict[str, ModuleType] = {}

    def module(self, name: str) -> Any:
        """A module of the engine, "encoder.inference" say. Raises EngineError."""
        try:
            with self._apart():
                found = importlib.import_module(f"{self.prefix}{name}")
        except ImportError as error:
            raise EngineError(
                f"{self.root} cannot be imported ({error}): pip install -r its requirements.txt, or what is missing"
            ) from error
        if name == "vocoder.wavernn.inference":
            self._with_cumproduct()
        return found

    def file(self, name: str) -> Path:
        """A file among the engine's modules."""
        return self.root.joinpath(*self.prefix.split(".")) / name

    def checkpoint(self, kind: str) -> Path:
        """The only .pt file where the engine's own code looks for an "encoder", "synthesizer" or "vocoder".

        Raises EngineError where there is none, or several.
        """
        place = self.root / ("data/ckpt/" + kind if self.prefix else f"{kind}/saved_models")
        found = sorted(place.rglob("*.pt"))
        if len(found) != 1:
            several = f", but {len(found)} .pt files" if found else ""
            raise EngineError(f"there is no single {kind} in {place}{several}: say which one, {kind}=FILE")
        return found[0]

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Its packages are found, and no others of these names; afterwards it is the other way round."""
        with _importing, contextlib.redirect_stdout(io.StringIO()):
            others = self._taken()
            sys.modules.update(self._own)
            sys.path.insert(0, str(self.root))
            try:
                yield
            finally:
                sys.path.remove(str(self.root))
                self._own = self._taken()
                sys.modules.update(others)

    def _taken(self) -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in self._tops]
        return {name: sys.modules.pop(name) for name in names}

    def _with_cumproduct(self) -> None:
        """WaveRNN asks numpy for `cumproduct`, which numpy 2 calls `cumprod` only."""
        module: Any = self._own[f"{self.prefix}vocoder.wavernn.models.fatchord_version"]
        if not hasattr(np, "cumproduct"):
            module.np = _Numpy()


class _Numpy:
    cumproduct = staticmethod(np.cumprod)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def checkout_of(file: str) -> Checkout:
    """The checkout in which this `synthesizer/inference.py` lies. Raises EngineError."""
    folder = Path(file).resolve().parents[1]
    return Checkout(folder.parent if folder.name == "models" else folder)
