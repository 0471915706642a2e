"""Hyperparameters that everybody shares, as in MockingBird."""

from types import SimpleNamespace

hparams = SimpleNamespace(
    sample_rate=16_000,
    hop_size=256,
    num_mels=20,
    tts_cleaner_names=["lowered"],
    tts_stop_threshold=-3.4,
    tts_dropout=0.5,
    use_gst=True,
    use_ser_for_gst=True,
)
