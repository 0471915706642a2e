"""From errors and opinions to a verdict, on figures that can be worked out by hand."""

from __future__ import annotations

import pytest

from accelerator.benchmark.verdict import ENOUGH, Heard, compare, spoken_words, verdict


def heard(errors: int, opinion: float, words: int = 10, similarity: float | None = None) -> Heard:
    return Heard("text", words, {"ear": "heard"}, {"ear": errors}, opinion, similarity)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, Anna!", ["dont", "stop", "anna"]),
        ("don’t stop anna", ["dont", "stop", "anna"]),
        ("It's half-past nine — now.", ["its", "half", "past", "nine", "now"]),
        ("Straße & café", ["strasse", "café"]),
        ("今日は、晴れ。", list("今日は晴れ")),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("...", []),
    ],
)
def test_words_are_compared_without_marks_and_capitals(text: str, words: list[str]) -> None:
    assert spoken_words(text) == words


def test_the_rate_is_over_all_words_and_the_difference_sentence_by_sentence() -> None:
    original = [heard(1, 3.0, words=5), heard(3, 3.2, words=15)] * 20
    ours = [heard(2, 2.9, words=5, similarity=0.9), heard(4, 3.1, words=15, similarity=0.7)] * 20
    alone = compare(original, None)
    assert alone["word_error_rate"]["ear"][0] == 4 / 20
    assert alone["opinion"][0] == pytest.approx(3.1)
    assert (alone["more"], alone["similarity"]) == (None, None)
    found = compare(ours, original)
    assert found["word_error_rate"]["ear"][0] == 6 / 20
    assert found["similarity"][0] == pytest.approx(0.8)
    more, low, high = found["more"]["word_error_rate"]["ear"]
    assert more == 2 / 20
    assert low < more < high, "one error more in each, of sentences of two lengths"
    # 0.1 less in each: though opinions differ between sentences, the differences do not
    assert found["more"]["opinion"] == pytest.approx((-0.1, -0.1, -0.1))


def test_intervals_are_those_of_a_mean() -> None:
    """Half of 400 sentences are 0.2 better and half 0.2 worse: the mean's standard error is 0.2 / 20."""
    original = [heard(0, 3.0)] * 400
    ours = [heard(0, 3.2), heard(0, 2.8)] * 200
    _, low, high = compare(ours, original)["more"]["opinion"]
    assert low == pytest.approx(-1.96 * 0.01, abs=0.003)
    assert high == pytest.approx(1.96 * 0.01, abs=0.003)


@pytest.mark.parametrize(
    ("errors", "opinion", "sentences", "says"),
    [
        ((0.0, -0.003, 0.005), (0.0, -0.03, 0.02), ENOUGH, "pass"),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), ENOUGH - 1, "undecided"),
        ((0.002, -0.002, 0.006), (0.0, -0.01, 0.01), ENOUGH, "undecided"),
        ((0.0, -0.002, 0.002), (-0.02, -0.04, 0.0), ENOUGH, "undecided"),
        ((0.02, 0.006, 0.03), (0.0, -0.01, 0.01), ENOUGH, "fail"),
        ((0.0, -0.002, 0.002), (-0.2, -0.25, -0.031), 40, "fail"),
        ((0.1, 0.1, 0.1), (0.0, 0.0, 0.0), 1, "undecided"),
    ],
)
def test_the_far_end_of_each_interval_is_held_to_its_bar(
    errors: tuple, opinion: tuple, sentences: int, says: str
) -> None:
    more = {"word_error_rate": {"ear": errors, "other": (1.0, 1.0, 1.0)}, "opinion": opinion}
    assert verdict(more, sentences) == says
