"""Files of an engine do not need each other in a circle, not even for their types."""

from __future__ import annotations

from tests.test_layers import MODULES, circles, imports


def test_no_circle_of_types_among_an_engines_files() -> None:
    engines = {name: file for name, file in MODULES.items() if name.startswith("accelerator.engines.")}
    assert len(engines) > 20
    needed = {name: set(imports(file, for_types=True)) & set(engines) - {name} for name, file in engines.items()}
    assert circles(needed) == set()
