import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from accelerator.errors import GenerationError, InvalidText
from accelerator.metrics import Meter, measuring
from accelerator.pipeline.pooled import Workers
from accelerator.speech import SamplingParams, segment_seed
from tests.doubles import joined
from tests.pipeline.utterers import RATE, Utterer, segments, speaker, tone, whole


def expected(count=6):
    base = SamplingParams(seed=5)
    parts = [([tone(s.text, segment_seed(base, i))], s.pause_s) for i, s in enumerate(segments(count))]
    return joined(parts, RATE)


def test_segments_are_spoken_at_once_and_heard_in_order():
    utterer = Utterer()
    own = speaker(utterer)
    np.testing.assert_array_equal(whole(own), expected())
    assert utterer.most == 2
    assert not any(utterer.exclusive)
    assert [each["state"] for each in own.progress()] == ["done"] * 6
    assert own.progress()[2]["audio_s"] == pytest.approx(400 * 7 / RATE)


def test_one_segment_takes_the_direct_path():
    utterer = Utterer()
    np.testing.assert_array_equal(whole(speaker(utterer, 1)), tone("Text 0.", SamplingParams(seed=5)))
    assert utterer.threads == [threading.current_thread().name]
    assert utterer.exclusive == [True]


def test_a_streams_first_segment_has_all_threads():
    utterer = Utterer()
    own = speaker(utterer, streaming=True)
    chunks = own.speak()
    next(chunks)
    assert utterer.said == ["Text 0."]
    assert np.concatenate(list(chunks)).size
    assert utterer.exclusive == [True] + [False] * 5


def test_a_failing_segment_is_redone_alone():
    utterer = Utterer(fails=["Text 3."])
    own = speaker(utterer)
    np.testing.assert_array_equal(whole(own), expected())
    assert [each["tries"] for each in own.progress()] == [1, 1, 1, 2, 1, 1]
    with pytest.raises(RuntimeError, match="broken"):
        whole(speaker(Utterer(fails=["Text 3."] * 2)))


def test_segments_without_a_sound_are_left_out_unless_all_are():
    audio = whole(speaker(Utterer(mute=["Text 2."])))
    assert audio.size < expected().size
    with pytest.raises(InvalidText, match="no sound"):
        whole(speaker(Utterer(mute=["Text 0."]), 1))
    with pytest.raises(InvalidText, match="no sound"):
        whole(speaker(Utterer(mute=[s.text for s in segments(3)]), 3))


def test_no_more_is_spoken_ahead_than_a_few_segments():
    utterer = Utterer()
    chunks = speaker(utterer, 40).speak()
    next(chunks)
    time.sleep(0.2)
    assert len(utterer.said) <= 1 + 4
    chunks.close()
    time.sleep(0.1)
    assert len(utterer.said) < 10, "what nobody will hear is not spoken"


def test_a_cancelled_request_ends():
    utterer, cancelled = Utterer(), threading.Event()
    chunks = speaker(utterer, 40, cancelled=cancelled.is_set).speak()
    next(chunks)
    cancelled.set()
    with pytest.raises(GenerationError, match="nobody listens"):
        list(chunks)
    assert len(utterer.said) < 10


def test_threads_count_to_the_requests_meter():
    meter = Meter()
    with measuring(meter):
        whole(speaker(Utterer()))
    assert meter.frames == 6


def test_requests_share_the_places():
    utterer, workers = Utterer(), Workers(2)
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(whole, speaker(utterer, 1 if i % 2 else 5, workers=workers)) for i in range(6)]
        assert all(each.result().size for each in done)
    assert utterer.most == 2
    assert not all(utterer.exclusive), "who speaks beside another has one thread"
    whole(speaker(utterer, 1, workers=workers))
    assert utterer.exclusive[-1], "the places are given back"
