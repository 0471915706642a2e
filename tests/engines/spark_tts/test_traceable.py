"""The engine's modules as they are traced: without weight norms, and without a trace in the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator.engines.spark_tts.traceable import Globals, Semantics, made
from accelerator.errors import UnsupportedEngine
from tests.engines.spark_tts.double import Mel, Wav2Vec2


@pytest.mark.parametrize("kind", ["parametrized", "hooked"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norms_are_computed_once(kind: str) -> None:
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm if kind == "parametrized" else nn.utils.weight_norm
    own = nn.Sequential(nn.Linear(4, 4), norm(nn.Conv1d(4, 3, 3)))
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    x = torch.randn(1, 4, 4)
    expected = own(x)
    copied = made(nn.Sequential, lambda: own)
    assert sorted(copied.state_dict()) == ["0.0.bias", "0.0.weight", "0.1.bias", "0.1.weight"]
    torch.testing.assert_close(copied(x), expected)
    torch.testing.assert_close(own(x), expected)
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    shared: Any = copied
    assert shared[0][0].weight.data_ptr() == own[0].weight.data_ptr(), "all other weights are in memory once"  # type: ignore[union-attr]


def test_what_is_built_otherwise_stays_in_pytorch() -> None:
    model: Any = Wav2Vec2()
    bicodec: Any = nn.Module()
    bicodec.encoder = bicodec.quantizer = nn.Identity()
    model.config.do_stable_layer_norm = False
    with pytest.raises(UnsupportedEngine, match="its wav2vec2 is not built as wav2vec2-large-xlsr-53"):
        Semantics(model, bicodec)
    bicodec.mel_transformer, bicodec.speaker_encoder = Mel(), nn.Identity()
    bicodec.mel_transformer.spectrogram.power = 2
    with pytest.raises(UnsupportedEngine, match="its spectrogram is not of magnitudes"):
        Globals(bicodec)


def test_the_mel_spectrogram_is_torchs() -> None:
    bicodec: Any = nn.Module()
    bicodec.mel_transformer, bicodec.speaker_encoder = Mel(), nn.Identity()
    audio = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 5000)).astype(np.float32))
    expected = bicodec.mel_transformer(audio).transpose(1, 2)
    answer = Globals(bicodec).mel(audio)
    assert answer.shape == (1, 16, 8)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-3)
