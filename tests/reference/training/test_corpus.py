import json
import shutil
import time

import pytest

from accelerator.reference import ReferenceEngineError
from accelerator.reference.spoken import spoken
from accelerator.reference.training.corpus import make, open_corpus
from accelerator.reference.training.everyday import templates
from accelerator.reference.training.pause import Pause
from accelerator.reference.training.sentences import Sentence, plan, wordnet

SPEAKERS = ("slt", "rms", "awb")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Dr. Lee paid $3.50 at 9:05.", "doctor lee paid three dollars and fifty cents at nine oh five."),
        ("On 2024-03-01, at 10:00 p.m.", "on march first, twenty twenty four, at ten p m"),
        ("In 1905, 1900, 2000 and 2005!", "in nineteen oh five, nineteen hundred, two thousand and two thousand five!"),
        ("It's 1,234.5 km", "it's one thousand two hundred thirty four point five kilometers"),
        ("Call 555-0123", "call five five five, zero one two three"),
        ("3/4 of 50% -- the 21st", "three quarters of fifty percent, the twenty first"),
        ("NASA's CPU: -5°C", "nasa's c p u, minus five degrees celsius"),
        ("“What—no?!” e.g. No. 7", "what, no? for example number seven"),
        ("44 kHz; 1 lb, 2 lbs, 60 mph", "forty four kilohertz, one pound, two pounds, sixty miles per hour"),
        ("£1.01 or $5 million, €0.50", "one pound and one penny or five million dollars, fifty cents"),
        ("¿Café?", "cafe?"),
        ("5 in 1905", "five in nineteen oh five"),
        ("...", ""),
    ],
)
def test_text_becomes_plain_words(written, said):
    assert spoken(written) == said


@pytest.fixture
def dictionary(tmp_path):
    """A WordNet of ten entries."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        lines = [f'0000{i} 00 n | the {part} number {i} (rare); "she saw the {part} {i} times"  \n' for i in range(10)]
        (folder / f"data.{part}").write_text("  1 licence | not a gloss\n" + "".join(lines))
    return folder


def test_dictionary_prose(dictionary):
    assert next(wordnet("definition", dictionary)) == "the noun number 0"
    assert len(list(wordnet("example", dictionary))) == 40


def test_a_plan_is_the_same_again_and_grows_at_its_end(dictionary):
    long = plan(300, SPEAKERS, source=dictionary)
    assert plan(120, SPEAKERS, source=dictionary) == long[:120]
    assert plan(120, SPEAKERS, seed=1, source=dictionary) != long[:120]
    assert len({s.text for s in long}) == len({s.name for s in long}) == 300
    assert all(set(s.text) <= set("abcdefghijklmnopqrstuvwxyz',.?! ") and s.text[-1] in ".?!" for s in long)
    assert {s.split for s in long} == {"train", "valid", "heldout"}
    assert [s.speaker for s in long[:3]] == list(SPEAKERS)


def test_a_plan_needs_its_dictionary(tmp_path):
    with pytest.raises(ReferenceEngineError, match="wordnet-base"):
        plan(3, SPEAKERS, source=tmp_path)


def test_templates_fill_every_slot():
    source = templates(0)
    assert not any(set("{}") & set(next(source)) for _ in range(500))


@needs_flite
def test_a_corpus_is_the_same_again(dictionary, tmp_path):
    first = make(tmp_path / "a", hours=0.01, source=dictionary)
    corpus = open_corpus(tmp_path / "a")
    clip = corpus.clips[-1]
    assert sum(c.seconds for c in corpus.clips) >= 36
    assert corpus.samples(clip).size == clip.samples
    assert 0.05 < abs(corpus.samples(clip)).max() < 1
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.wav")}
    make(tmp_path / "a", hours=0.01, source=dictionary)  # nothing is spoken again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.wav")} == stamps
    make(tmp_path / "b", hours=0.01, source=dictionary, processes=1, expect=first)
    with pytest.raises(ReferenceEngineError, match="differs"):
        make(tmp_path / "c", hours=0.01, source=dictionary, seed=1, expect=first)
    assert set(json.loads(first.read_text().splitlines()[0])) > set(Sentence.__dataclass_fields__)


def test_without_a_corpus_one_is_told_what_to_do(tmp_path):
    with pytest.raises(ReferenceEngineError, match="data"):
        open_corpus(tmp_path)


def test_a_pause_lasts_while_its_file_is_there(tmp_path):
    Pause(None).wait()
    Pause(tmp_path / "absent").wait()
    file = tmp_path / "quiet"
    file.touch()

    class Stop:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3

    stop, start = Stop(), time.monotonic()
    Pause(file, poll_s=0.01).wait(stop)
    assert stop.asked == 4
    assert time.monotonic() - start >= 0.03
