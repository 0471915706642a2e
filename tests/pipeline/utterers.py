"""Stages that say tones: what a pooled speaker makes of them is known to the sample."""

from __future__ import annotations

import threading
import time

import numpy as np

from accelerator.metrics import Meter, current_meter
from accelerator.pipeline.pooled import Pooled, Workers
from accelerator.speech import SamplingParams, SpeechRequest
from accelerator.text.segments import Segment
from tests.doubles import BareStages

__all__ = ["RATE", "Utterer", "segments", "speaker", "tone", "whole"]

RATE = 8_000


class Utterer(BareStages):
    """A tone for each segment, as long as its text, whose pitch is its seed."""

    schedule, windows = "pooled", ()

    def __init__(self, fails=(), mute=()):
        self.fails, self.mute = list(fails), mute
        self.said, self.threads, self.exclusive = [], [], []
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def generate(self, segment, voice, job, *, resume=()):
        text = segment.text.strip()
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.said.append(text)
            self.threads.append(threading.current_thread().name)
            self.exclusive.append(job.exclusive)
        time.sleep(0.02)
        with self.lock:
            self.busy -= 1
            if text in self.fails:
                self.fails.remove(text)
                raise RuntimeError("broken")
        current_meter().add_frames(1)
        if text not in self.mute:
            yield (tone(text, job.sampling),)


def tone(text, sampling):
    time = np.arange(400 * len(text)) / RATE
    return (0.5 * np.sin(2 * np.pi * (200 + sampling.seed % 500) * time)).astype(np.float32)


def segments(count):
    return [Segment(f"Text {i}.", 0.2 if i + 1 < count else 0.0, 8 * i) for i in range(count)]


def speaker(utterer, count=6, streaming=False, **options):
    utterer.given = segments(count)
    text = "".join(s.text for s in utterer.given)
    request = SpeechRequest(text, sampling=SamplingParams(seed=5), streaming=streaming)
    return Pooled(utterer, request, None, RATE, Meter(), **{"workers": Workers(2), **options})


def whole(speaker):
    return np.concatenate(list(speaker.speak()))
