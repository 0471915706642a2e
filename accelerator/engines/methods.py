"""A method of an unknown engine, and how a request is translated into its arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..errors import InvalidOption
from ..speech import SamplingParams, SpeechRequest

__all__ = ["METHODS", "Method"]

METHODS = ("synthesize", "tts", "generate", "create", "infer", "inference", "__call__")
"""The names that a method which speaks may have; the first of them that can speak any text does."""

_TEXT = ("text", "gen_text", "target_text", "sentence")  # or any other name, where it comes first
_WORDS = {
    "voice": ("voice", "speaker", "speaker_id", "speaker_name", "voice_id"),
    "reference_audio": ("reference_audio", "speaker_wav", "audio_prompt_path", "prompt_speech_path", "ref_audio"),
    "reference_text": ("reference_text", "prompt_text", "ref_text"),
    **{each.name: (each.name,) for each in fields(SamplingParams)},
}
"""What a request may ask for -> what engines call it."""

_OPTION = {word: option for option, words in _WORDS.items() for word in words}
_UNTOLD = inspect.signature(lambda text, /, **options: None)  # of compiled code; it will say what it does not take
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


class Method:
    """One method of an engine. `flaw`: why it cannot speak whatever text is asked for, or None."""

    def __init__(self, engine: Any, name: str) -> None:
        owner = getattr(engine, "__name__", type(engine).__name__)  # a function, or a module, has one
        self.who = f"{owner}()" if name == "__call__" else f"{owner}.{name}()"
        self._call: Callable[..., Any] = engine if name == "__call__" else getattr(engine, name)
        try:
            taken = inspect.signature(self._call).parameters
        except (TypeError, ValueError):
            taken = _UNTOLD.parameters
        self._taken, kinds = taken, [each.kind for each in taken.values()]
        self._anything = inspect.Parameter.VAR_KEYWORD in kinds
        self._named = [n for n, each in taken.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        self._text = self._place_of_text()
        self._needed = [n for n in self._named if taken[n].default is inspect.Parameter.empty and n != self._text]
        unknown = [n for n in self._needed if n not in _OPTION]
        self.flaw = "takes no text" if self._text is None else f"needs {unknown[0]}, too" if unknown else None

    def __call__(self, request: SpeechRequest) -> Any:
        """What it answers. Raises InvalidOption for what it has no word for, and for what it needs as well."""
        given = {}
        for option, value in _asked(request).items():
            words = [word for word in _WORDS[option] if word in self._named and word != self._text]
            if not words and not self._anything:
                known = ", ".join(name for name in self._named if name != self._text)
                refused = "knows no voices by name" if option == "voice" else f"does not take {option}"
                raise InvalidOption(f"{self.who} {refused}; it takes {known or 'a text only'}")
            word = words[0] if words else option
            given[word] = _as_taken(value, self._taken.get(word))
        if lacking := [name for name in self._needed if name not in given]:
            raise InvalidOption(f"{self.who} needs {lacking[0]}, too: give {_OPTION[lacking[0]]}=")
        given[str(self._text)] = request.text
        positional = [given.pop(name, each.default) for name, each in self._taken.items() if self._has_place(each)]
        return self._call(*positional, **given)

    def _place_of_text(self) -> str | None:
        """The parameter with a usual name for it, or else the first that is not for something else."""
        usual = [name for name in _TEXT if name in self._named]
        others = [n for n, each in self._taken.items() if each.kind not in _BY_NAME and n not in _OPTION]
        return next(iter([*usual, *others]), "text" if self._anything else None)

    def _has_place(self, parameter: inspect.Parameter) -> bool:
        """Whether it is given by its position: where it must be, and the text also where it comes first."""
        if parameter.name != self._text:
            return parameter.kind is parameter.POSITIONAL_ONLY
        first = parameter.name == next(iter(self._taken))
        kinds = (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
        return parameter.kind in kinds or (first and parameter.kind is parameter.POSITIONAL_OR_KEYWORD)


def _asked(request: SpeechRequest) -> dict[str, Any]:
    asked = {**vars(request.sampling), "voice": request.voice}
    if request.reference is not None:
        asked |= {"reference_audio": request.reference.source, "reference_text": request.reference.text or None}
    return {option: value for option, value in asked.items() if value is not None}


def _as_taken(value: Any, parameter: inspect.Parameter | None) -> Any:
    """A voice's number as a number, where the engine counts its voices."""
    if parameter is None or not isinstance(value, str) or not value.isdecimal():
        return value
    kinds = re.findall(r"\w+", str(parameter.annotation))  # "int | None", "typing.Optional[int]", "<class 'int'>"
    return int(value) if type(parameter.default) is int or ("int" in kinds and "str" not in kinds) else value
