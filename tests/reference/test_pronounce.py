import gzip

import pytest

from accelerator.reference.pronounce import PHONES, SYMBOLS, pronounced, write_dictionary


def spelt(word: str) -> str:
    """The phones of a word."""
    names = {symbol: phone for phone, symbol in SYMBOLS.items()}
    return " ".join(names[symbol] for symbol in pronounced(word))


@pytest.mark.parametrize(
    ("word", "phones"),
    [("through", "TH R UW"), ("measure", "M EH ZH ER"), ("o'clock", "AH K L AA K"), ("voice", "V OY S")],
)
def test_a_known_word_becomes_its_sounds(word, phones):
    assert spelt(word) == phones


def test_what_is_no_known_word_stays():
    assert pronounced("xyzzy, the qqq?") == f"xyzzy, {pronounced('the')} qqq?"
    assert pronounced("") == ""
    assert pronounced("the cat.", spell=lambda word: word == "cat") == f"{pronounced('the')} cat."


def test_every_sound_has_a_character_of_its_own_that_words_do_not_have():
    assert len(PHONES) == len(set(SYMBOLS.values())) == 39
    assert not any(c in "abcdefghijklmnopqrstuvwxyz' ,.?!" or len(c) != 1 for c in SYMBOLS.values())


def test_a_dictionary_is_packed_with_first_pronunciations_and_the_same_bytes_each_time(tmp_path):
    source, target = tmp_path / "dict", tmp_path / "packed.gz"
    source.write_text("read R IY D\nread(2) R EH D\na AH\nread R EH D\n3d TH R IY\n")
    assert write_dictionary(source, target) == 2
    first = target.read_bytes()
    assert gzip.decompress(first).decode() == f"a {SYMBOLS['AH']}\nread {SYMBOLS['R']}{SYMBOLS['IY']}{SYMBOLS['D']}\n"
    write_dictionary(source, target)
    assert target.read_bytes() == first
