"""A checkpoint folder of Spark-TTS, tiny and random, by the engine's own classes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.engines.spark_tts import toy

__all__ = ["checkpoint"]

_WIDTH, _VOCOS = 32, {"vocos_dim": 16, "vocos_intermediate_dim": 32, "vocos_num_layers": 2}
_BICODEC: dict[str, dict[str, Any]] = {
    "mel_params": {
        "sample_rate": 16000,
        "n_fft": 1024,
        "win_length": 640,
        "hop_length": 320,
        "mel_fmin": 10,
        "mel_fmax": None,
        "num_mels": 128,
    },
    "encoder": {"input_channels": _WIDTH, **_VOCOS, "out_channels": _WIDTH, "sample_ratios": [1, 1]},
    "decoder": {"input_channel": _WIDTH, "channels": 32, "rates": [8, 5, 4, 2], "kernel_sizes": [16, 11, 8, 4]},
    "quantizer": {
        "input_dim": _WIDTH,
        "codebook_size": toy.SEMANTIC_IDS,
        "codebook_dim": 8,
        "commitment": 0.25,
        "codebook_loss_weight": 2.0,
        "use_l2_normlize": True,  # their spelling
        "threshold_ema_dead_code": 0.2,
    },
    "speaker_encoder": {
        "input_dim": 128,
        "out_dim": _WIDTH,
        "latent_dim": 16,
        "token_num": toy.GLOBALS,
        "fsq_levels": [2, 2, 2, 2],
        "fsq_num_quantizers": 1,
    },
    "prenet": {
        "input_channels": _WIDTH,
        **_VOCOS,
        "out_channels": _WIDTH,
        "condition_dim": _WIDTH,
        "sample_ratios": [1, 1],
        "use_tanh_at_final": False,
    },
    "postnet": {"input_channels": _WIDTH, **_VOCOS, "out_channels": _WIDTH, "use_tanh_at_final": False},
}
_CLASSES = {
    "encoder": "encoder_decoder.feat_encoder.Encoder",
    "decoder": "encoder_decoder.wave_generator.WaveGenerator",
    "quantizer": "vq.factorized_vector_quantize.FactorizedVectorQuantize",
    "speaker_encoder": "speaker.speaker_encoder.SpeakerEncoder",
    "prenet": "encoder_decoder.feat_decoder.Decoder",
    "postnet": "encoder_decoder.feat_decoder.Decoder",
}


def checkpoint(folder: Path, package: str = "spark_tts_lib", dtype: str = "float32") -> Path:
    """The folder. package: the engine's. dtype: in which its configuration says the language model is."""
    from omegaconf import OmegaConf

    folder.mkdir(parents=True)
    settings = {
        "highpass_cutoff_freq": 40,
        "sample_rate": 16000,
        "segment_duration": 2.4,
        "max_val_duration": 12,
        "latent_hop_length": 320,
        "ref_segment_duration": 6,
        "volume_normalize": True,
    }
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    _write_bicodec(folder / "BiCodec", package)
    _write_wav2vec2(folder / "wav2vec2-large-xlsr-53")
    _write_language_model(folder / "LLM", dtype)
    return folder


def _write_bicodec(folder: Path, package: str) -> None:
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    folder.mkdir()
    OmegaConf.save(OmegaConf.create({"audio_tokenizer": _BICODEC}), folder / "config.yaml")
    torch.manual_seed(1)
    made = {}
    for name, place in _CLASSES.items():
        module, _, kind = place.rpartition(".")
        made[name] = getattr(importlib.import_module(f"{package}.modules.{module}"), kind)(**_BICODEC[name])
    bicodec = importlib.import_module(f"{package}.models.bicodec").BiCodec(_BICODEC["mel_params"], **made)
    with torch.no_grad():
        for name, parameter in bicodec.named_parameters():
            if "gamma" in name:  # else the blocks would add next to nothing
                parameter.fill_(0.5)
    state = {_published(name): each.contiguous() for name, each in bicodec.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def _published(name: str) -> str:
    """As the checkout calls it, and as it is published; the package reads both, and writes its own."""
    norm = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    return next((name.replace(own, known) for own, known in norm.items() if own in name), name)


def _write_wav2vec2(folder: Path) -> None:
    torch.manual_seed(2)
    config = transformers.Wav2Vec2Config(
        hidden_size=_WIDTH,
        num_hidden_layers=17,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=True, return_attention_mask=True
    )
    extractor.save_pretrained(folder)


def _write_language_model(folder: Path, dtype: str) -> None:
    tokens = toy.tokenizer()
    tokens.save_pretrained(folder)
    model = toy.taught(toy.language_model(tokens), tokens)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # public copies have none
    config = json.loads((folder / "config.json").read_text())
    for name in ("dtype", "rope_parameters"):  # which version 5 of transformers writes, and 4 does not know
        del config[name]
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype, "rope_theta": 1e6}))
