"""What an adapter uses of MockingBird's `vocoder.wavernn.inference`."""

import torch
from models.vocoder.wavernn import hparams as hp
from models.vocoder.wavernn.models.fatchord_version import WaveRNN

_model = None


def load_model(path, verbose=True):
    global _model
    _model = WaveRNN(hp.hop_length, hp.sample_rate)
    _model.load_state_dict(torch.load(path)["model_state"])
    _model.eval()


def infer_waveform(mel, normalize=True, batched=True, target=8000, overlap=800, progress_callback=None):
    mel = torch.from_numpy((mel / hp.mel_max_abs_value)[None])
    return _model.generate(mel, batched, target, overlap, True, progress_callback), hp.sample_rate
