import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.reference import bundled_voice, load, pronounce
from accelerator.reference.numerals import library
from accelerator.reference.pronounce import SYMBOLS, pronounced
from accelerator.reference.spoken import Stretch, read, spoken
from tests.reference.normalisers import main, rows

TABLE = list(rows())
NAMES = """
    EY|B IY|S IY|D IY|IY|EH F|JH IY|EY CH|AY|JH EY|K EY|EH L|EH M|EH N|OW|P IY|K Y UW|AA R|EH S|T IY|Y UW|V IY
    |D AH B AH L Y UW|EH K S|W AY|Z IY
"""
LETTERS = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", map(str.strip, NAMES.split("|")), strict=True))


def sounds(words: str) -> str:
    names = {symbol: phone for phone, symbol in SYMBOLS.items()}
    return " ".join(names[symbol] for symbol in pronounced(words) if symbol in names)


@pytest.mark.parametrize(("written", "said"), [(written, said) for written, said, _ in TABLE])
def test_what_is_written_is_read(written: str, said: str) -> None:
    assert spoken(written) == said
    assert spoken(said) == said, "the engine reads a phrase's words once more"


def test_the_table_has_a_line_for_each_way_of_writing() -> None:
    assert len({written for written, _, _ in TABLE}) == len(TABLE) >= 150


@pytest.mark.parametrize("letter", LETTERS)
def test_a_letter_that_is_spelled_has_its_name(letter: str) -> None:
    other = "Q" if letter != "Q" else "X"
    assert sounds(spoken(f"an {other}{letter} cable")) == f"AE N {LETTERS[other]} {LETTERS[letter]} K EY B AH L"
    assert sounds(spoken(f"an {letter}{other}'s end")).startswith(f"AE N {LETTERS[letter]} {LETTERS[other]} ")
    assert sounds(spoken(f"three {other}{letter}s")).startswith(f"TH R IY {LETTERS[other]} {LETTERS[letter]} ")


def test_the_article_stays_one() -> None:
    assert sounds(spoken("A cat is a cat. A MAN")).split()[0] == "AH"
    assert spoken("Once Upon A Time") == "once upon a time"
    assert spoken("THIS IS A TEST") == "this is a test"


@pytest.mark.parametrize(
    ("text", "words", "skipped"),
    [
        ("Well done 😀😀👍!", "well done!", ("😀", "👍")),
        ("┌─ box ─┐ \x07", "box", ("┌", "─", "┐", "\x07")),
        ("*bold* and {x}", "bold and x", ("*", "{", "}")),
        ("5\ufe0f\u20e3 co\u00adoperate\u200b \ufeff", "five cooperate", ()),
        ("“Quotes”, (brackets) – dashes — «and» ¿more? …", "quotes, brackets, dashes, and more?", ()),
        ("tabs\tand\nlines\r\n\u2028 \u00a0", "tabs and lines", ()),
        ("1,5 €; 20 ¢; ¥; ₿3", "one euro and fifty cents, twenty cents, yen, three bitcoins", ()),
        ("a ★ b ♥ c ♪", "a b c", ("★", "♥", "♪")),
    ],
)
def test_what_has_no_reading_is_told(text: str, words: str, skipped: tuple[str, ...]) -> None:
    assert read(text).words == words
    assert tuple(each.text for each in read(text).skipped) == skipped
    assert read(text).foreign == ()


@pytest.mark.parametrize(
    ("text", "words", "foreign"),
    [
        ("Say 你好 to him.", "say to him.", ["你好"]),
        ("English.\n\n你好，世界。今天2024年3月。\n\nMore.", "english. more.", ["你好，世界。今天2024年3月"]),
        ("Привет, мир! ok", "ok", ["Привет, мир"]),
        ("Καλημέρα and α-helix", "and alpha helix", ["Καλημέρα"]),
        ("αβ is foreign, Δt is not", "is foreign, delta t is not", ["αβ"]),
        ("مرحبا ٣٤ مرحبا, ٣٤ apples", "thirty four apples", ["مرحبا ٣٤ مرحبا"]),
        ("ไทย 한국어 עברית हिन्दी あア", "", ["ไทย 한국어 עברית हिन्दी あア"]),
        ("Ｆｕｌｌ ４２ ① Ⅳ ﬁ 𝐇𝐢 é ø ß", "full forty two one i v fi hi e o ss", []),
    ],
)
def test_what_is_of_another_script_is_told(text: str, words: str, foreign: list[str]) -> None:
    reading = read(text)
    assert reading.words == words
    assert [stretch.text for stretch in reading.foreign] == foreign
    assert all(text[stretch.start : stretch.end] == stretch.text for stretch in reading.foreign)


def test_a_stretch_says_where_it_is() -> None:
    assert read("Say 你好 to him.").foreign == (Stretch(4, 6, "你好"),)


@settings(max_examples=400, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from("019.,:-/$€%°'\"AaIXs½²µ ")), max_size=40))
def test_any_text_is_read_in_the_voices_alphabet(text: str) -> None:
    reading = read(text)
    assert re.fullmatch(r"[a-z',.?! ]*", reading.words)
    assert len(set(reading.skipped)) == len(reading.skipped)
    assert read(reading.words).words == reading.words


def test_every_character_is_read_or_told() -> None:
    """A letter or digit is read, or of a stretch; what is neither is read, skipped, or white space and marks."""
    for code in [*range(0x250), *range(0x250, 0x30000, 11)]:
        if 0xD800 <= code < 0xE000:
            continue
        char = chr(code)
        reading = read(f"so {char} so")
        if char.isalnum() and char not in "ㅤ":
            assert reading.words != "so so" or reading.foreign or reading.skipped, hex(code)


@pytest.mark.timeout(120)  # each is read in about a second; what grows as the square of the length takes minutes
@pytest.mark.parametrize(
    "piece",
    [
        "1,",
        "'",
        " ",
        "…",
        "1.",
        "A",
        "a.",
        "-",
        "(1",
        "½",
        "你 ",
        "x@",
        "/a",
        "&A",
        "1 1/",
        "A. ",
        "20s, ",
        "$1-",
        "1/a",
    ],
)
def test_a_long_text_takes_time_as_its_length(piece: str) -> None:
    assert isinstance(spoken(piece * (100_000 // len(piece))), str)


def test_sentences_are_read_alike_together_and_alone() -> None:
    quiet = [written for written, said, _ in TABLE if written[-1].isalnum() and not said.endswith((".", "?", "!"))]
    sentences = [f"Now {written}." for written in quiet]
    assert len(sentences) > 100
    for first, second in pairwise(sentences):
        alone = spoken(first).rstrip(".") + "."  # as the engine ends a text, also one whose point was of "p.m."
        assert spoken(f"{first} {second}") == f"{alone} {spoken(second)}"


def test_no_request_waits_for_what_reading_needs() -> None:
    library.cache_clear()
    pronounce._dictionary.cache_clear()
    load(path=bundled_voice())
    assert library.cache_info().currsize == pronounce._dictionary.cache_info().currsize == 1


def test_normalisers_are_scored(capsys) -> None:
    main(["ours"])
    assert re.search(rf"ours +- +{len(TABLE)} ", capsys.readouterr().out)
