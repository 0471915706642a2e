"""`MockingBird`: the project's three modules with their singletons, as one engine that can be wrapped."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EngineError, GenerationError
from ...hardware.forks import Lock
from .checkout import GANS, Checkout, checkout_of
from .instances import instance

__all__ = ["MockingBird", "Settings", "trimmed"]

_FADED = 22  # frames that WaveRNN's end needs: it fades over 20, and fails below
_seeding = Lock()  # PyTorch's random state is one for the whole process


@dataclass(frozen=True)
class Settings:
    """What a synthesizer's global hyperparameters said when it was loaded, of what is asked while it speaks.

    cleaners: names of the functions that clean a text. threshold: frames that are below it all over end a spectrogram.
    styled: whether there are style tokens. by_speaker: whether these depend on the speaker.
    """

    cleaners: tuple[str, ...]
    threshold: float
    styled: bool
    by_speaker: bool


class MockingBird:
    """Speaks a text in the voice of an embedding.

    encoder, synthesizer, vocoder: what the project's own code works with, loaded: the module `encoder.inference`, a
    `Synthesizer`, and one of the modules `vocoder.{hifigan,fregan,wavernn}.inference`. Their models are taken as they
    are now: loading others into these modules later changes nothing here, and nothing here changes them. A
    `Synthesizer` that was not loaded yet is loaded apart, since that would overwrite the global hyperparameters.

    Safe to use from several threads once wrapped; by itself it is not, as the engine is not.
    """

    def __init__(self, encoder: Any, synthesizer: Any, vocoder: Any) -> None:
        """Raises EngineError for modules without a model."""
        if getattr(encoder, "_model", None) is None:
            raise EngineError("the encoder has no model yet: call its load_model(path) before")
        if getattr(vocoder, "generator", None) is None and getattr(vocoder, "_model", None) is None:
            raise EngineError("the vocoder has no model yet: call its load_model(path) before")
        if not synthesizer.is_loaded():
            synthesizer = _loaded(synthesizer)
        self.encoder, self.synthesizer, self.vocoder = instance(encoder), synthesizer, instance(vocoder)
        hparams = self._names["hparams"]
        self.settings = Settings(
            tuple(hparams.tts_cleaner_names),
            float(hparams.tts_stop_threshold),
            bool(getattr(hparams, "use_gst", False)) and hasattr(synthesizer._model, "gst"),
            bool(getattr(hparams, "use_ser_for_gst", False)),
        )

    @classmethod
    def open(
        cls,
        checkout: str | Path,
        *,
        encoder: str | Path | None = None,
        synthesizer: str | Path | None = None,
        vocoder: str | Path | None = None,
    ) -> MockingBird:
        """From checkpoint files, by the code of a checkout, on the CPU; which vocoder it is, its file says.

        A file that is not named is the only one in the checkout's own folder for its kind. PyTorch's random state,
        which loading a vocoder sets, stays as it was. Raises EngineError.
        """
        import torch

        own, given = Checkout(checkout), {"encoder": encoder, "synthesizer": synthesizer, "vocoder": vocoder}
        files = [own.checkpoint(name) if each is None else Path(each) for name, each in given.items()]
        for name, file in zip(given, files, strict=True):
            if not file.is_file():
                raise EngineError(f"the {name}'s checkpoint {str(file)!r} is no file: give the path of a .pt file")
        speaking = own.module("encoder.inference")
        try:
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
                speaking.load_model(files[0], device="cpu")
                made = _opened(own, files[1])  # before WaveRNN's hyperparameters, which are made of the synthesizer's
                return cls(speaking, made, _vocoder(own, files[2]))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"these checkpoints cannot be opened as a MockingBird: {error}") from error

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        rate = getattr(self.vocoder, "output_sample_rate", None)
        return int(self.vocoder._model.sample_rate if rate is None else rate)

    @property
    def is_gan(self) -> bool:
        """Whether the vocoder is a generator (HiFi-GAN, Fre-GAN); if not, it is WaveRNN."""
        return getattr(self.vocoder, "generator", None) is not None

    @property
    def generator(self) -> Any:
        """The vocoder's model."""
        return self.vocoder.generator if self.is_gan else self.vocoder._model

    @property
    def _names(self) -> dict[str, Any]:
        """The globals of the synthesizer's module."""
        return dict(type(self.synthesizer).synthesize_spectrograms.__globals__)

    def symbols(self, text: str) -> np.ndarray:
        """The text's symbols, int64 [T], the last of which says that it ends: Chinese is written in pinyin before."""
        own = self._names
        words = own["lazy_pinyin"](text, style=own["Style"].TONE3, neutral_tone_with_five=True)
        return np.array(own["text_to_sequence"](" ".join(words), list(self.settings.cleaners)), np.int64)

    def embed(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """The voice of a recording float32 [n], float32 [256]."""
        return np.asarray(self.encoder.embed_utterance(self.encoder.preprocess_wav(audio, sample_rate)), np.float32)

    def spectrogram(
        self, text: str, embedding: np.ndarray, *, style_idx: int = 0, min_stop_token: int = 5, steps: int = 2000
    ) -> np.ndarray:
        """The mel spectrogram of a text, float32 [80, F]. style_idx: a style token; -1 is what suits the speaker.

        min_stop_token: tenths of the probability of an end at which it ends. steps: frames at most. Raises
        GenerationError for one that is silent all over.
        """
        import torch

        with torch.inference_mode():
            _, mels, _ = self.synthesizer._model.generate(
                torch.from_numpy(self.symbols(text))[None],
                torch.from_numpy(np.asarray(embedding, np.float32))[None],
                style_idx=style_idx,
                min_stop_token=min_stop_token,
                steps=steps,
            )
        mel = trimmed(mels[0].numpy(), self.settings.threshold)
        if not mel.shape[1]:
            raise GenerationError(f"the synthesizer produced silence for {text!r}: try another seed or text")
        return mel

    def vocode(self, mel: np.ndarray) -> np.ndarray:
        """The audio of a mel spectrogram [80, F], float32 [n]."""
        if self.is_gan:
            return np.asarray(self.vocoder.infer_waveform(mel)[0], np.float32).reshape(-1)
        model, frames = self.vocoder._model, mel.shape[1]
        padded = np.pad(mel, ((0, 0), (0, max(0, _FADED - frames))), mode="edge")
        modes = [(module, module.training) for module in model.modules()]
        try:
            audio, _ = self.vocoder.infer_waveform(padded, progress_callback=lambda *_: None)
        finally:
            for module, training in modes:  # it leaves the model in training
                module.training = training
        return np.asarray(audio[: max(1, frames - 1) * model.hop_length], np.float32)

    @contextlib.contextmanager
    def seeded(self, seed: int | None) -> Iterator[None]:
        """PyTorch draws by a seed meanwhile, and goes on afterwards as if nothing had been drawn."""
        import torch

        with _seeding, torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield


def trimmed(mel: np.ndarray, threshold: float) -> np.ndarray:
    """A spectrogram [80, F] without the frames at its end that are below the threshold all over."""
    sounding = np.flatnonzero(mel.max(axis=0) >= threshold)
    return mel[:, : sounding[-1] + 1 if len(sounding) else 0]


def _loaded(synthesizer: Any) -> Any:
    """The same `Synthesizer`, loaded by another instance of its code. Raises EngineError."""
    file = type(synthesizer).synthesize_spectrograms.__code__.co_filename
    return _opened(checkout_of(file), Path(synthesizer.model_fpath))


def _opened(checkout: Checkout, file: Path) -> Any:
    import torch

    made = checkout.module("synthesizer.inference").Synthesizer(file, verbose=False)
    made.device = torch.device("cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        made.load()
    return made


def _vocoder(checkout: Checkout, file: Path) -> Any:
    """The module of a checkpoint's vocoder, loaded. Raises EngineError."""
    import torch

    held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if "generator" not in held:
        found = checkout.module("vocoder.wavernn.inference")
        found.load_model(file, verbose=False)
        found._model.to("cpu")
        return found
    name = GANS["cond_up.0.bias" in held["generator"]]
    found = checkout.module(f"vocoder.{name}.inference")
    beside = next(iter(sorted(file.parent.rglob("*.json"))), None)
    found.load_model(file, beside or next(iter(sorted(checkout.file(f"vocoder/{name}").glob("config*.json")))))
    found.generator.to("cpu")
    found._device = torch.device("cpu")
    return found
