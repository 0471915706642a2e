"""Texts that must be refused with a clear message, and texts that must pass unchanged."""

from __future__ import annotations

import unicodedata

import pytest

from accelerator.errors import InvalidReference, InvalidText
from accelerator.text.check import MAX_CHARS, check_characters, check_text


@pytest.mark.parametrize(
    "text",
    [
        "Hello.",
        "7",
        "  leading and trailing \n",
        "Tabs\tand\r\nlines",
        "form\x0cfeed, escape \x1b[0m, C1 \x85, DEL \x7f",  # harmless: the engine sees what it always saw
        "I 💚 this 👩‍👩‍👧‍👦 family 🇩🇪",
        "مرحبا بالعالم",
        "\u202bשלום\u202c world",
        "你好,世界。",
        "こんにちは",
        "안녕하세요",
        "नमस्ते",
        "e\u0301 and o\u0302\u0301",
        unicodedata.normalize("NFD", "Ångström"),
        "ﬁne ½ Ⅷ ²",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
        "(laughing) <|speaker:0|>",
        "1️⃣",
        "a" * MAX_CHARS,
    ],
)
def test_passes_unchanged(text: str) -> None:
    assert check_text(text) is text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \t\r\n\u3000\u00a0", "is empty"),
        ("...!?", "nothing to speak"),
        ("。、「」", "nothing to speak"),
        ("+ = € ©", "nothing to speak"),
        ("🙂🎉", "nothing to speak"),
        ("🇩🇪", "nothing to speak"),
        ("\u0301\u0302", "nothing to speak"),
        ("\u200b\u200d\ufeff\u202e", "nothing to speak"),
        ("\x01\x02\x7f", "nothing to speak"),
        ("\u3164\uffa0", "nothing to speak"),
        ("\ue000", "nothing to speak"),
        ("a\0b", "NUL character at position 1"),
        ("ab\ud83d", r"surrogate U\+D83D\) at position 2"),
        ("\udc00ab", r"surrogate U\+DC00\) at position 0"),
        ("a" * (MAX_CHARS + 1), "100,001 characters, more than 100,000"),
        ("a" * 1_000_000, "split"),
        ("語" * (1_000_000 // 3), "split"),
        ("😀" * (1_000_000 // 4), "split"),
    ],
    ids=range(19),
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidText, match=message) as caught:
        check_text(text)
    assert len(str(caught.value)) < 300
    str(caught.value).encode("utf-8")  # can be logged


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "NoneType"), (3, "int"), (b"hello", "decode"), (["a"], "list"), (bytearray(b"a"), "decode")],
)
def test_not_a_string(text: object, message: str) -> None:
    with pytest.raises(InvalidText, match=message):
        check_text(text)  # type: ignore[arg-type]


def test_limit_is_an_option() -> None:
    assert check_text("abc", max_chars=3) == "abc"
    with pytest.raises(InvalidText, match="4 characters, more than 3"):
        check_text("abcd", max_chars=3)


def test_characters_alone_allow_silence_and_name_their_owner() -> None:
    assert check_characters("") == ""
    assert check_characters("...") == "..."
    with pytest.raises(InvalidReference, match=r"^the transcript has a NUL"):
        check_characters("\0", what="the transcript", error=InvalidReference)


@pytest.mark.parametrize(
    "code",
    [0x01, 0x1F, 0x7F, 0x85, 0xAD, 0x301, 0x200B, 0x2028, 0x3164, 0xD7FF, 0xE000, 0xFDD0, 0xFFFF, 0xE0001, 0x10FFFF],
    ids=hex,
)
def test_characters_of_every_other_kind_are_harmless_between_letters(code: int) -> None:
    """Controls, formats, marks, private ones and those that nobody has assigned."""
    assert check_text(f"a{chr(code)}b") == f"a{chr(code)}b"


@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDFFF], ids=hex)
@pytest.mark.parametrize(("text", "position"), [("{}ab", 0), ("a{}b", 1), ("ab{}", 2)])
def test_halves_of_characters_are_refused_wherever_they_stand(code: int, text: str, position: int) -> None:
    with pytest.raises(InvalidText, match=rf"surrogate U\+{code:04X}\) at position {position}:"):
        check_text(text.format(chr(code)))
