"""Checkouts of the double, in either layout, and checkpoint files of random weights for its classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from accelerator.engines.mockingbird.checkout import Checkout

__all__ = ["LAYOUTS", "checkout", "checkpoints", "spoil"]

LAYOUTS = ("new", "old")
_DOUBLE = Path(__file__).parent / "double"


def checkout(folder: Path, layout: str) -> Path:
    """A checkout of the double: its packages within `models`, or beside each other as before 2022-12."""
    for file in _DOUBLE.rglob("*.py"):
        place, text = file.relative_to(_DOUBLE), file.read_text(encoding="utf-8")
        if layout == "old":
            place, text = place.relative_to("models"), re.sub(r"from models\.", "from ", text)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")
    return folder


def checkpoints(root: Path, folder: Path, **settings: Any) -> dict[str, Path]:
    """Files of encoder, synthesizer, hifigan, fregan and wavernn. settings: the synthesizer's json file."""
    own = Checkout(root)
    settings = {"hop_size": 20, **settings}
    hparams = own.module("synthesizer.hparams").hparams
    vars(hparams).update(settings)
    torch.manual_seed(0)
    inference = own.module("synthesizer.inference")
    tacotron = inference.Tacotron(len(inference.SYMBOLS))
    with torch.no_grad():
        tacotron.decoder.stop_proj.bias.fill_(-2.0)  # it is not likely to end
    made = {
        "encoder": ("model_state", own.module("encoder.inference").SpeakerEncoder()),
        "synthesizer": ("model_state", tacotron),
        "hifigan": ("generator", own.module("vocoder.hifigan.models").Generator()),
        "fregan": ("generator", own.module("vocoder.fregan.generator").FreGAN()),
        "wavernn": ("model_state", own.module("vocoder.wavernn.inference").WaveRNN(20, 16_000)),
    }
    files = {}
    for name, (key, model) in made.items():
        files[name] = folder / name / f"{name}.pt"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: spoil(model).state_dict()}, files[name])
    (folder / "synthesizer" / "synthesizer.json").write_text(json.dumps(settings))
    for name in ("hifigan", "fregan"):
        (folder / name / "config.json").write_text(json.dumps({"seed": 1234, "sampling_rate": 16_000}))
    return files


def spoil(model: Any) -> Any:
    """The same, its norms such that one that is lost would be noticed."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.add_(0.2 * torch.rand_like(tensor))
    return model
