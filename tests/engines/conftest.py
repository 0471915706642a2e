from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes what packages leave open (their voices' `.npz`): a later test would be told of it, and fail."""
    opened, load = list[Any](), np.load

    def noted(*args: Any, **options: Any) -> Any:
        opened.append(load(*args, **options))
        return opened[-1]

    monkeypatch.setattr(np, "load", noted)
    yield
    for each in opened:
        if isinstance(each, np.lib.npyio.NpzFile):
            each.close()
