"""Scores text normalisers on the table of `spoken`: python tests/reference/normalisers.py [NAME ...]

Those that are not installed are left out; `pip install` each in an environment of its own. What a reader would hear is
compared, kindly: case, marks, hyphens, "and" and whether initials stand apart do not count, and the table's other
readings are right, too.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).with_name("spoken_table.tsv")
Normaliser = Callable[[str], str]


def rows() -> Iterator[tuple[str, str, list[str]]]:
    """Per line: what is written, what `spoken` gives, and what else a reader may say."""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if "\t" in line:  # others name a class
            written, said, *others = line.split("\t")
            yield written, said, others[0].split("|") if others else []


def heard(words: str) -> str:
    words = re.sub(r"['’]", "", words.lower()).replace("-", " ")
    words = re.sub(r"[^\w]+|\b(?:and)\b", " ", words)
    words = re.sub(r"\bay\b", "a", re.sub(r"\boh\b", "o", words))
    return re.sub(r"(?<=\b\w) (?=\w\b)", "", " ".join(words.split()))


def _ours() -> Normaliser:
    from accelerator.reference.spoken import spoken

    return spoken


def _nemo() -> Normaliser:
    from nemo_text_processing.text_normalization.normalize import Normalizer

    made = Normalizer(input_case="cased", lang="en")
    return lambda text: made.normalize(text, punct_post_process=True)


def _wetext_processing() -> Normaliser:
    from tn.english.normalizer import Normalizer

    return Normalizer().normalize


def _wetext() -> Normaliser:
    from wetext import Normalizer

    return Normalizer(lang="en", operator="tn").normalize


def _normt2s() -> Normaliser:
    import normt2s

    return lambda text: normt2s.normalize(text, lang="en")


def _spokenform() -> Normaliser:
    import spokenform

    return lambda text: spokenform.prepare(text, language="en", normalize_literals=True).spoken_text


def _voxnorm() -> Normaliser:
    import voxnorm

    return lambda text: voxnorm.normalize(text, lang="en")


def _kitten() -> Normaliser:
    import kitten_text_processing

    kitten_text_processing.warm()
    return kitten_text_processing.normalize_text


def _verbalis() -> Normaliser:
    import verbalis

    made = verbalis.Verbalizer("en")
    return made.process


def _only_numbers(words: Normaliser) -> Normaliser:
    return lambda text: re.sub(r"\d+(?:\.\d+)?", lambda number: f" {words(number[0])} ", text)


def _num2words() -> Normaliser:
    from num2words import num2words

    return _only_numbers(num2words)


def _inflect() -> Normaliser:
    import inflect

    return _only_numbers(inflect.engine().number_to_words)


NORMALISERS: dict[str, Callable[[], Normaliser]] = {  # by distribution
    "ours": _ours,
    "nemo-text-processing": _nemo,
    "WeTextProcessing": _wetext_processing,
    "wetext": _wetext,
    "normt2s": _normt2s,
    "spokenform": _spokenform,
    "voxnorm": _voxnorm,
    "kitten-text-processing": _kitten,
    "verbalis": _verbalis,
    "num2words": _num2words,
    "inflect": _inflect,
}


def main(names: list[str]) -> None:
    print(f"{'distribution':24} {'version':12} right of {len(list(rows()))}  loading s  ms a line")
    for name in names or NORMALISERS:
        started = time.perf_counter()
        try:
            number = version(name) if name != "ours" else "-"
            normalise = NORMALISERS[name]()
        except ImportError:  # what metadata lacks is one, too
            print(f"{name:24} not installed")
            continue
        normalise("Room 12.")
        loaded = time.perf_counter()
        wrong = [(text, result) for text, said, others in rows() if (result := _try(normalise, text, said, others))]
        elapsed = time.perf_counter() - loaded
        right = len(list(rows())) - len(wrong)
        print(f"{name:24} {number:12} {right:9} {loaded - started:13.2f} {1000 * elapsed / (right + len(wrong)):10.2f}")
        if names:
            print(*(f"    {text!r}: {result!r}" for text, result in wrong), sep="\n")


def _try(normalise: Normaliser, text: str, said: str, others: list[str]) -> str:
    """What it gives for the text, if that is wrong; otherwise nothing."""
    try:
        result = normalise(text)
    except Exception as error:  # another's bug is a wrong line
        return f"{type(error).__name__}: {error}"
    return "" if heard(result) in map(heard, [said, *others]) else result or "(nothing)"


if __name__ == "__main__":
    main(sys.argv[1:])
