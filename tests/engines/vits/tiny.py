"""A VITS of transformers' pipeline, tiny and random."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

__all__ = ["close", "modeling_vits", "pipeline", "transformers"]

transformers = pytest.importorskip("transformers", reason="pip install transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what PyTorch will do without one day
    from transformers.models.vits import modeling_vits


def pipeline(folder, **options):
    """A real VitsModel of random weights, and a tokenizer of letters."""
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(" abcdefghijklmnopqrstuvwxyz'-")}))
    tokenizer = transformers.VitsTokenizer(str(folder / "vocab.json"), phonemize=False, pad_token=" ", unk_token=" ")
    config = {
        "vocab_size": 29,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 48,
        "flow_size": 16,
        "spectrogram_bins": 33,
        "upsample_initial_channel": 32,
        "upsample_rates": [4, 4],
        "upsample_kernel_sizes": [8, 8],
        "prior_encoder_num_wavenet_layers": 2,
        "posterior_encoder_num_wavenet_layers": 1,
        "duration_predictor_filter_channels": 32,
        "pad_token_id": 0,
        **options,
    }
    torch.manual_seed(0)
    model = transformers.VitsModel(transformers.VitsConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that a lost one would be noticed of
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.decoder.conv_post.weight.mul_(0.05)  # else it clips
        if config.get("use_stochastic_duration_prediction", True):
            model.duration_predictor.flows[0].log_scale.fill_(0.3)
    return transformers.pipeline("text-to-speech", model=model, tokenizer=tokenizer)


def close(actual, expected):
    np.testing.assert_allclose(np.reshape(actual, -1), np.reshape(expected, -1), atol=1e-4)
