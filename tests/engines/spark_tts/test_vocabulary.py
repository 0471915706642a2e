"""Tokens and codes."""

from __future__ import annotations

import pytest

from accelerator.engines.spark_tts.vocabulary import Vocabulary, ranges_of_names
from accelerator.errors import UnsupportedEngine

IDS = {
    "a": 0,
    "<|bicodec_semantic_3|>": 7,
    "<|bicodec_semantic_0|>": 9,
    "<|bicodec_global_2|>": 8,
    "bicodec_global_1": 4,
}


def test_codes_are_found_among_tokens() -> None:
    vocabulary = Vocabulary(IDS)
    reply = [8, 7, 0, 9, 4, 7, 250, -1]
    assert vocabulary.semantics(reply).tolist() == [3, 0, 3]
    assert vocabulary.globals(reply).tolist() == [2]
    assert [vocabulary.is_semantic(token) for token in (7, 8, 9, 250, -3)] == [True, False, True, False, False]


def test_names_are_what_a_reply_is_made_of() -> None:
    assert ranges_of_names(IDS) == ((7, 10),)
    assert ranges_of_names({**IDS, "<|im_end|>": 2, "<": 3, "<||>": 5}) == ((2, 3), (7, 10))


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedEngine, match="the tokenizer has no global tokens: it is not one of Spark-TTS"):
        Vocabulary({"<|bicodec_semantic_3|>": 7})
