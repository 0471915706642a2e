from hypothesis import given
from hypothesis import strategies as st

from accelerator.reference.phrases import phrases


def test_ends_of_sentences_are_better_than_commas_and_these_than_spaces():
    assert phrases("One. Two. Three.", 9) == ["One. Two.", "Three."]
    assert phrases("One. Two, and a long rest of the sentence.", 20) == [
        "One.",
        "Two,",
        "and a long rest of",
        "the sentence.",
    ]
    assert phrases("incomprehensibilities", 8) == ["incompre", "hensibil", "ities"]
    assert phrases("  Short.  ", 20) == ["Short."]
    assert phrases("", 5) == []


def test_what_is_read_digit_by_digit_stays_together():
    number = "plus one, five five five, one two three, four five six seven"
    assert phrases(f"Our number is {number}, day and night.", 80) == [f"Our number is {number},", "day and night."]
    assert phrases(f"So please call us at {number} today.", 70) == ["So please call us at", f"{number} today."]
    assert phrases(number, 40) == ["plus one, five five five, one two three,", "four five six seven"]
    assert phrases("I have one, two or three.", 15) == ["I have one,", "two or three."]


words = st.lists(st.sampled_from(["one", "two,", "plus", "six.", "at", "zero"]), max_size=16).map(" ".join)


@given(st.text("abc é.,?! ", max_size=60) | words, st.integers(2, 20))
def test_nothing_is_lost_and_nothing_is_too_long(text, longest):
    pieces = phrases(text, longest)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece.encode()) <= longest for piece in pieces)
