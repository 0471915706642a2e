"""What exports are proven with: seeded, of lengths that the tracer does not see, in all styles of speaking."""

from __future__ import annotations

import numpy as np
import pytest

from accelerator.engines.mockingbird import MockingBird, examples


@pytest.mark.parametrize("kind", ["speaker", "text", "step", "postnet", "vocoder"])
def test_each_has_three_lengths_and_is_the_same_again(engine: MockingBird, kind: str) -> None:
    own = {"speaker": engine.encoder._model, "vocoder": engine.generator}.get(kind, engine.synthesizer._model)
    settings = (True, True) if kind == "text" else ()
    found = [list(getattr(examples, f"of_{kind}")(own, *settings)) for _ in range(2)]
    assert len({given[0].shape for given, _ in found[0]}) == 3
    for (given, said), (again, same) in zip(*found, strict=True):
        for one, other in zip([*given, *said], [*again, *same], strict=True):
            np.testing.assert_array_equal(one, other)
            assert np.isfinite(one[one != -np.inf]).all()


def test_a_text_is_in_a_style_of_its_own_and_in_the_speakers(engine: MockingBird) -> None:
    styles = [int(given[2][0]) for given, _ in examples.of_text(engine.synthesizer._model, True, True)]
    assert -1 in styles
    assert max(styles) >= 0
