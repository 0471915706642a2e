"""MockingBird as a checkout has it, and tiny checkpoints of random weights that its own classes make.

Set ACCELERATOR_MOCKINGBIRD_ROOT to a checkout of babysor/MockingBird, of either layout, where what it imports is
installed (docs/mockingbird.md).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accelerator.engines.mockingbird.checkout import GANS, Checkout
from tests.engines.mockingbird.checkpoints import spoil

__all__ = ["ROOT", "installed", "made"]

ROOT = os.environ.get("ACCELERATOR_MOCKINGBIRD_ROOT")
_SMALL = {
    **{f"tts_{name}_dims": 16 for name in ("encoder", "decoder", "postnet")},
    "tts_embed_dims": 32,
    "tts_lstm_dims": 32,
    "tts_encoder_K": 2,
    "tts_postnet_K": 3,
    "tts_num_highways": 1,
    "sample_rate": 16_000,
    "n_fft": 1024,
    "hop_size": 200,
    "win_size": 800,
    "num_mels": 80,
}
_SMALL_WAVERNN = {"voc_rnn_dims": 32, "voc_fc_dims": 32, "voc_compute_dims": 16, "voc_res_out_dims": 16}


def installed(test: Any) -> Any:
    """Of a test that needs the checkout."""
    for mark in (
        pytest.mark.engine,
        pytest.mark.skipif(not ROOT, reason="needs ACCELERATOR_MOCKINGBIRD_ROOT, a checkout of babysor/MockingBird"),
        pytest.mark.filterwarnings("ignore"),  # of the engine and what it imports
    ):
        test = mark(test)
    return test


def made(folder: Path) -> dict[str, Path]:
    """Files of encoder, synthesizer, hifigan and fregan. WaveRNN's sizes are constants of its module."""
    assert ROOT is not None
    own = Checkout(ROOT)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        models = {"encoder": ("model_state", _encoder(own)), "synthesizer": ("model_state", _tacotron(own))}
        models |= {name: ("generator", _generator(own, name, folder)) for name in GANS}
    files = {}
    for name, (key, model) in models.items():
        files[name] = folder / name / f"{name}.pt"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: model.state_dict(), "step": 1}, files[name])
    (folder / "synthesizer" / "synthesizer.json").write_text(json.dumps(_SMALL))
    return files


def wavernn(file: Path) -> Any:
    """An opened module of a small WaveRNN, of random weights."""
    assert ROOT is not None
    own = Checkout(ROOT)
    vars(own.module("synthesizer.hparams").hparams).update(_SMALL)
    inference: Any = own.module("vocoder.wavernn.inference")
    hparams = inference.hp
    vars(hparams).update(_SMALL_WAVERNN, voc_res_blocks=1)
    names = {"rnn_dims": "voc_rnn_dims", "fc_dims": "voc_fc_dims", "bits": "bits", "pad": "voc_pad"}
    names |= {"upsample_factors": "voc_upsample_factors", "feat_dims": "num_mels", "compute_dims": "voc_compute_dims"}
    names |= {"res_out_dims": "voc_res_out_dims", "res_blocks": "voc_res_blocks", "hop_length": "hop_length"}
    names |= {"sample_rate": "sample_rate", "mode": "voc_mode"}
    with contextlib.redirect_stdout(io.StringIO()):
        model = inference.WaveRNN(**{key: getattr(hparams, name) for key, name in names.items()})
        torch.save({"model_state": spoil(model).state_dict()}, file)
        inference.load_model(file, verbose=False)
    return inference


def _encoder(own: Checkout) -> Any:
    cpu = torch.device("cpu")
    return own.module("encoder.model").SpeakerEncoder(cpu, cpu)


def _tacotron(own: Checkout) -> Any:
    hparams, symbols = own.module("synthesizer.hparams").hparams, own.module("synthesizer.utils.symbols").symbols
    vars(hparams).update(_SMALL)
    names = ("embed", "encoder", "decoder", "postnet", "lstm")
    sizes = {f"{name}_dims": getattr(hparams, f"tts_{name}_dims") for name in names}
    tacotron = own.module("synthesizer.models.tacotron").Tacotron(
        **sizes,
        num_chars=len(symbols),
        n_mels=hparams.num_mels,
        fft_bins=hparams.num_mels,
        encoder_K=hparams.tts_encoder_K,
        postnet_K=hparams.tts_postnet_K,
        num_highways=hparams.tts_num_highways,
        dropout=hparams.tts_dropout,
        stop_threshold=hparams.tts_stop_threshold,
        speaker_embedding_size=hparams.speaker_embedding_size,
    )
    tacotron.r = 2
    with torch.no_grad():
        tacotron.decoder.stop_proj.bias.fill_(-2.0)  # it is not likely to end
    return spoil(tacotron)


def _generator(own: Checkout, name: str, folder: Path) -> Any:
    file = next(iter(sorted(own.file(f"vocoder/{name}").glob("config*.json"))))
    config = {**json.loads(file.read_text()), "upsample_initial_channel": 32}
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(config))
    module, kind = {"hifigan": ("models", "Generator"), "fregan": ("generator", "FreGAN")}[name]
    return getattr(own.module(f"vocoder.{name}.{module}"), kind)(SimpleNamespace(**config))
