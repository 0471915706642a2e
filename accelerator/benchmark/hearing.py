"""Those who listen: recognisers that write down what they hear, DNSMOS, which says how good it sounds, and a measure of
whose voice it is. None has anything to do with the engines. Samples are float32 [n] in [-1, 1] at 16 kHz.

    recognisers   Moonshine base (Jeffries et al. 2024), Whisper base or any other of a local folder, pocketsphinx
    opinion       DNSMOS P.835, overall (Reddy et al. 2022), from 1 to 5
    similarity    GE2E (Wan et al. 2018) by Resemblyzer: the cosine of two voices' embeddings
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..audio.checks import resampled
from ..errors import EngineError, InvalidOption
from ..installation import install_command
from ..runtime.onnx import Session
from .moonshine import Moonshine

__all__ = [
    "RECOGNISERS",
    "SAMPLE_RATE",
    "Opinion",
    "Recogniser",
    "Similarity",
    "at_16_khz",
    "recognisers",
    "similarity",
]

SAMPLE_RATE = 16_000
RECOGNISERS = ("moonshine", "whisper", "pocketsphinx")
_QUIET_S = 0.25  # before and after what is to be recognised

Hear = Callable[[np.ndarray], str]


class Recogniser(NamedTuple):
    """hear: samples -> what they say, as the recogniser writes it."""

    name: str
    hear: Hear


def recognisers(name: str | None = None, whisper: Path | None = None, language: str = "en") -> list[Recogniser]:
    """The one asked for, or the best there is; and with a folder of Whisper that as well.

    language: as Whisper calls it; the others understand English. Raises EngineError where there is none, InvalidOption.
    """
    if name is not None and name not in RECOGNISERS:
        raise InvalidOption(f"no recogniser called {name!r}; there are {', '.join(RECOGNISERS)}")
    if name == "whisper" and whisper is None:
        raise InvalidOption("whisper needs its folder: give --whisper FOLDER, with a model as faster-whisper reads it")
    if language != "en" and (whisper is None or name not in (None, "whisper")):
        raise InvalidOption(f"only Whisper understands {language!r} here: give --whisper FOLDER")
    english = _english(name) if language == "en" and name != "whisper" else None
    second = None if whisper is None else Recogniser("whisper", _whisper(whisper, language))
    found = [recogniser for recogniser in (english, second) if recogniser is not None]
    if not found:
        raise EngineError(
            f"there is no recogniser: {install_command('hearing')}; where moonshine-cpp has no wheel (it has them for "
            "Linux on x86-64 and macOS on arm64), `pip install faster-whisper` and give --whisper FOLDER, or "
            f"{install_command('quality')}"
        )
    return found


def _english(name: str | None) -> Recogniser | None:
    for each, package, make in (
        ("moonshine", "moonshine_cpp", _moonshine),
        ("pocketsphinx", "pocketsphinx", _pocketsphinx),
    ):
        if name in (None, each) and importlib.util.find_spec(package) is not None:
            return Recogniser(each, make())
    if name is not None:
        extra = "hearing" if name == "moonshine" else "quality"
        raise EngineError(f"there is no {name}: {install_command(extra)}")
    return None


def _moonshine() -> Hear:
    model = Moonshine(SAMPLE_RATE)
    return lambda audio: model(_between_silence(audio))


def _whisper(folder: Path, language: str) -> Hear:
    if importlib.util.find_spec("faster_whisper") is None:
        raise EngineError("Whisper is heard with by faster-whisper: pip install faster-whisper")
    if not (folder / "model.bin").is_file():
        raise InvalidOption(f"{folder} has no model.bin: give a folder of a model as faster-whisper reads it")
    import faster_whisper

    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", local_files_only=True)

    def hear(audio: np.ndarray) -> str:
        segments, _ = model.transcribe(_between_silence(audio), language=language)
        return " ".join(segment.text.strip() for segment in segments)

    return hear


def _pocketsphinx() -> Hear:
    from ..reference.measures import Recogniser as Pocketsphinx

    return Pocketsphinx()


def _between_silence(audio: np.ndarray) -> np.ndarray:
    quiet = np.zeros(round(_QUIET_S * SAMPLE_RATE), np.float32)
    return np.concatenate((quiet, audio, quiet))


class Opinion:
    """DNSMOS's overall opinion of a clip, by the model in the package speechmos.

    The package's own code is not run: it imports others that it does not ask for. Raises EngineError without it.
    """

    _SECONDS = 9.01  # that the model hears at once; a shorter clip is repeated
    _OVERALL = (
        -0.06766283,
        1.11546468,
        0.04602535,
    )  # from the model's answer to listeners' opinions, as they publish it

    def __init__(self) -> None:
        found = importlib.util.find_spec("speechmos")
        if found is None or not found.submodule_search_locations:
            raise EngineError(
                f"there is no speechmos, whose model says how good speech sounds: {install_command('hearing')}"
            )
        self._session = Session(Path(found.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx")

    def __call__(self, audio: np.ndarray) -> float:
        length = int(self._SECONDS * SAMPLE_RATE)
        heard = np.asarray(audio, np.float32).clip(-1, 1)
        while len(heard) < length:
            heard = np.concatenate((heard, heard))
        hops = int(np.floor(len(heard) / SAMPLE_RATE) - self._SECONDS) + 1
        windows = [heard[i * SAMPLE_RATE :][:length] for i in range(hops)]
        answers = [float(self._session.run({"input_1": w[None]})[0][0, 2]) for w in windows if len(w) == length]
        return float(np.mean(np.polyval(self._OVERALL, answers)))


class Similarity:
    """How alike two clips' voices are, from -1 to 1; about 0.8 and more for one voice, 0.6 and less for two."""

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray]) -> None:
        self._embed = embed

    def __call__(self, audio: np.ndarray, other: np.ndarray) -> float:
        one, two = self._embed(audio), self._embed(other)
        return float(one @ two / max(float(np.linalg.norm(one) * np.linalg.norm(two)), 1e-9))


def similarity() -> Similarity | None:
    """By Resemblyzer, where it is installed and can be imported."""
    if importlib.util.find_spec("resemblyzer") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources, which webrtcvad imports
        try:
            import resemblyzer
        except ImportError:  # webrtcvad needs setuptools below 81
            return None
        encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(audio: np.ndarray) -> np.ndarray:
        spoken = resemblyzer.preprocess_wav(audio, source_sr=SAMPLE_RATE)
        return np.asarray(encoder.embed_utterance(spoken if len(spoken) else audio))

    return Similarity(embed)


def at_16_khz(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Samples as the listeners take them; at least a tenth of a second, of silence where there is nothing."""
    samples = resampled(np.asarray(audio, np.float32), sample_rate, SAMPLE_RATE)
    return np.concatenate((samples, np.zeros(max(0, SAMPLE_RATE // 10 - len(samples)), np.float32)))
