"""Hyperparameters of WaveRNN; the hop is that of the synthesizer when this is imported."""

from models.synthesizer.hparams import hparams

hop_length, sample_rate, mel_max_abs_value = hparams.hop_size, hparams.sample_rate, 4.0
