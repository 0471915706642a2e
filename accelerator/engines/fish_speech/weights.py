"""PyTorch weights that can be let go and read again from a checkpoint folder."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ...errors import EngineError, UnsupportedEngine
from ...hardware.forks import Lock
from ...hardware.pages import return_freed
from .language_model import state
from .structure import computing, on_meta, replica, shared, unloaded

__all__ = ["Held", "codec_shell", "language_model_shell", "load_codec", "load_language_model", "same"]


class Held:
    """A module with its weights, or only its shell: the same structure and type, weights on the meta device."""

    def __init__(self, module: Any | None, shell: Any | None, load: Callable[[], Any] | None) -> None:
        assert module is not None or (shell is not None and load is not None)
        self._module, self._load, self._lock = module, load, Lock()
        self.shell: Any = module if shell is None else shell

    def get(self) -> Any:
        """The module with its weights; read now if they were let go. Raises EngineError."""
        with self._lock:
            if self._module is None:
                assert self._load is not None
                self._module = self._load()
            return self._module

    def release(self, load: Callable[[], Any] | None = None) -> None:
        """Let the weights go; `get` reads them again, by `load` if given."""
        with self._lock:
            self._load = load or self._load
            assert self._load is not None
            if self._module is self.shell:
                kept = [vars(self._module).get(name) for name in ("config", "tokenizer")]
                pairs = [(each, each) for each in kept if each is not None]
                self.shell = replica(self._module, on_meta, replaced=pairs)
            self._module = None
        gc.collect()
        return_freed()


def language_model_shell(folder: Path) -> Any:
    """The text2semantic model of a checkpoint folder without its weights. Raises EngineError, UnsupportedEngine."""
    return _from_pretrained(folder, load_weights=False)


def load_language_model(folder: Path, dtype: torch.dtype | None) -> Any:
    """The text2semantic model of a checkpoint folder; float types as stored if `dtype` is None. Raises EngineError.

    The engine's own loader first fills a model with random numbers, which takes longer than reading the weights; on the
    meta device it only reads them. The attention mask stays there: `with_cache` makes the part that a request needs.
    """
    model = _from_pretrained(folder, load_weights=True)
    missing = unloaded(model)
    if missing:
        raise EngineError(f"{folder} lacks weights of the language model ({', '.join(missing[:3])} ...)")
    config, rotations = model.config, sys.modules[type(model).__module__].precompute_freqs_cis
    model.freqs_cis = rotations(config.max_seq_len, config.head_dim, config.rope_base)
    model.fast_freqs_cis = rotations(config.num_codebooks, config.fast_head_dim, config.rope_base)
    return (model if dtype is None else model.to(dtype=dtype)).eval()


def _from_pretrained(folder: Path, *, load_weights: bool) -> Any:
    if "int4" in str(folder) or "int8" in str(folder):  # the engine goes by the name, too
        raise UnsupportedEngine(f"{folder} is a quantized checkpoint: give the one it was made from")
    llama = importlib.import_module("fish_speech.models.text2semantic.llama")
    try:
        with computing(), torch.device("meta"):
            return llama.DualARTransformer.from_pretrained(str(folder), load_weights=load_weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise EngineError(f"fish-speech cannot read the language model in {folder}: {error}") from error


def codec_shell(config_name: str, path: Path) -> Any:
    """The codec of a checkpoint file without its weights. Raises EngineError."""
    inference = importlib.import_module("fish_speech.models.dac.inference")
    try:
        with computing(), torch.device("meta"):
            return inference.load_model(config_name, str(path), device="meta")
    except Exception as error:  # hydra raises its own kinds
        raise EngineError(f"fish-speech cannot read the codec {path} as {config_name}: {error}") from error


def codec_state(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a codec's checkpoint file, mapped from it."""
    weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    weights = weights.get("state_dict", weights)
    prefix = "generator."
    if any(name.startswith(prefix) for name in weights):
        weights = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    return dict(weights)


def load_codec(shell: Any, path: Path) -> Any:
    """The codec of a checkpoint file, on the structure of `shell`. Raises EngineError."""
    with computing():
        codec = replica(shell, shared)
        codec.load_state_dict(codec_state(path), strict=False, assign=True)
        rotations = sys.modules[_dac(type(codec)).__module__].precompute_freqs_cis
        for module in codec.modules():
            table = module._buffers.get("freqs_cis")
            if table is not None and table.is_meta:  # not stored by newer versions
                module.freqs_cis = rotations(len(table), module.config.head_dim, module.config.rope_base)
    missing = unloaded(codec)
    if missing:
        raise EngineError(f"{path} lacks weights of the codec ({', '.join(missing[:3])} ...)")
    return codec.eval()


def _dac(kind: type) -> type:
    return next(each for each in kind.__mro__ if each.__name__ == "DAC" and "modded_dac" in each.__module__)


def same(weights: Iterable[tuple[str, torch.Tensor]], stored: dict[str, torch.Tensor]) -> bool:
    """Whether every weight is among the stored ones with the same value, once those have its type."""
    with computing():
        return all(
            name in stored and stored[name].shape == w.shape and torch.equal(stored[name].to(w.dtype), w)
            for name, w in weights
            if w.dtype != torch.bool  # masks
        )


def stored_language_model(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint folder, mapped from its files. Raises EngineError."""
    return dict(state(_from_pretrained(folder, load_weights=True)))
