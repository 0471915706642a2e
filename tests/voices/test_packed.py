"""A voice's value is believed only as it was packed, for the key that it was packed for."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from accelerator.errors import CorruptEntry
from accelerator.voices.packed import packed, unpacked

KEY = "a" * 64
VOICE = {"codes": np.arange(20).reshape(2, 10), "speaker": np.linspace(-1, 1, 256, dtype=np.float32)}


def test_what_was_packed_comes_back() -> None:
    made = {**VOICE, "half": np.ones((2, 3), np.float16), "one": np.array(3.5), "turned": np.arange(6).reshape(2, 3).T}
    found = unpacked(KEY, packed(KEY, made, {"encoder": "e"}))
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        name: (array.dtype, array.shape) for name, array in made.items()
    }
    assert all(np.array_equal(found[name], made[name]) for name in made)


def test_bytes_in_another_order_are_the_same_numbers() -> None:
    found = unpacked(KEY, packed(KEY, {"codes": np.arange(5, dtype=">i4")}, {}))
    assert found["codes"].tolist() == [0, 1, 2, 3, 4]


def test_a_type_of_number_that_the_format_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"KeyError|SafetensorError"):
        packed(KEY, {"codes": np.ones(3, np.longdouble)}, {})


def harmed() -> dict[str, Any]:
    good = packed(KEY, VOICE, {})
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    turned = {**header, "codes": {**header["codes"], "shape": [10, 2]}}
    larger = {**header, "codes": {**header["codes"], "shape": [2, 11]}}
    renamed = {("codas" if name == "codes" else name): each for name, each in header.items()}
    unsigned = {name: each for name, each in header.items() if name != "__metadata__"}

    def with_header(changed: dict[str, Any]) -> bytes:
        text = json.dumps(changed).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + good[8 + length :]

    assert unpacked(KEY, with_header(header))  # so that the others fail for their own reasons
    return {
        "nothing": b"",
        "half": good[: len(good) // 2],
        "one byte less": good[:-1],
        "one byte more": good + b"\0",
        "a bit": good[:-3] + bytes([good[-3] ^ 1]) + good[-2:],
        "another's": packed("b" * 64, VOICE, {}),
        "turned": with_header(turned),
        "larger": with_header(larger),
        "renamed": with_header(renamed),
        "unsigned": with_header(unsigned),
        "empty": packed(KEY, {"codes": np.zeros((2, 0))}, {}),
        "truths": packed(KEY, {"codes": np.array([True])}, {}),
        "no arrays": safetensors.numpy.save({}, {"sha256": ""}),
        "a pickle": pickle.dumps(VOICE),
        "text": "text",
        "a length": (1 << 62).to_bytes(8, "little") + good[8:],
        "nested": (40_000).to_bytes(8, "little") + b"[" * 40_000,
    }


@pytest.mark.parametrize("harm", list(harmed()))
def test_anything_else_is_refused(harm: str) -> None:
    with pytest.raises(CorruptEntry):
        unpacked(KEY, harmed()[harm])
