"""Which tokens of the vocabulary stand for codes: of the semantic codebook, and of the voice's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from ...errors import UnsupportedEngine

__all__ = ["Vocabulary", "ranges_of_names"]

_NAME = re.compile(r"<\|.+\|>", re.DOTALL)
_CODE = re.compile(r"<\|bicodec_(semantic|global)_(\d+)\|>")


class Vocabulary:
    """Token id -> code, by a table for each codebook; made once, where the engine searches each reply for names."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """ids: token -> id, as `tokenizer.get_vocab()` says. Raises UnsupportedEngine."""
        found: dict[str, dict[int, int]] = {"semantic": {}, "global": {}}
        for name, token in ids.items():
            if match := _CODE.fullmatch(name):
                found[match[1]][token] = int(match[2])
        if lacking := [kind for kind, codes in found.items() if not codes]:
            raise UnsupportedEngine(f"the tokenizer has no {lacking[0]} tokens: it is not one of Spark-TTS")
        size = max(ids.values()) + 1
        self._semantic, self._global = (_table(found[kind], size) for kind in ("semantic", "global"))

    def is_semantic(self, token: int) -> bool:
        return 0 <= token < len(self._semantic) and bool(self._semantic[token] >= 0)

    def semantics(self, tokens: Iterable[int]) -> np.ndarray:
        """The semantic codes among tokens, in order, int64 [n]."""
        return _codes(self._semantic, tokens)

    def globals(self, tokens: Iterable[int]) -> np.ndarray:
        """The codes of a voice among tokens, in order, int64 [n]."""
        return _codes(self._global, tokens)


def ranges_of_names(ids: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """The ranges (begin, end) of tokens with a name, such as <|bicodec_global_7|>: all that a reply is made of."""
    found = sorted(token for name, token in ids.items() if _NAME.fullmatch(name))
    begins = [token for i, token in enumerate(found) if not i or found[i - 1] != token - 1]
    ends = [token + 1 for i, token in enumerate(found) if i + 1 == len(found) or found[i + 1] != token + 1]
    return tuple(zip(begins, ends, strict=True))


def _table(codes: Mapping[int, int], size: int) -> np.ndarray:
    """int64 [size]: -1 for tokens that are no codes."""
    table = np.full(size, -1, np.int64)
    table[list(codes)] = list(codes.values())
    return table


def _codes(table: np.ndarray, tokens: Iterable[int]) -> np.ndarray:
    ids = np.fromiter(tokens, np.int64)
    found = table[ids[(ids >= 0) & (ids < len(table))]]  # the model has rows that no token uses
    return np.asarray(found[found >= 0])
