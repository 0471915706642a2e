"""Sentences to be heard: plain, different, and the same everywhere."""

from __future__ import annotations

import re

from accelerator.benchmark.sentences import sentences


def test_they_are_the_same_everywhere_and_all_different() -> None:
    assert sentences(2) == [
        "The warm window was cleaned by the visitor near the river.",
        "To our surprise, the driver stole the striped wagon between the trees.",
    ]
    many = sentences(1000)
    assert len(set(many)) == 1000
    assert many[:2] == sentences(2)


def test_they_are_plain() -> None:
    for sentence in sentences(1000):
        assert re.fullmatch(r"[A-Z][a-z, ]+[.?]", sentence), sentence
        assert 8 <= len(sentence.split()) <= 16, sentence
        assert "threw by" not in sentence
    assert any("was stolen by" in sentence for sentence in sentences(1000))
