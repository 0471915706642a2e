"""What an adapter uses of MockingBird's `encoder.inference`, a small network in it."""

import numpy as np
import torch
from torch import nn

sampling_rate = 16_000
_model = None
_device = None


class SpeakerEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 16, 2, batch_first=True), nn.Linear(16, 12)

    def forward(self, frames, hidden_init=None):
        raw = torch.relu(self.linear(self.lstm(frames, hidden_init)[1][0][-1]))
        return raw / (torch.norm(raw, dim=1, keepdim=True) + 1e-5)


def load_model(path, device=None):
    global _model, _device
    _device = torch.device(device or "cpu")
    _model = SpeakerEncoder()
    _model.load_state_dict(torch.load(path)["model_state"])
    _model.eval()
    print("an encoder of", path.name)


def preprocess_wav(wav, source_sr=None):
    """Without blocks of silence."""
    assert source_sr in (None, sampling_rate)
    blocks = wav[: len(wav) // 480 * 480].reshape(-1, 480)
    return blocks[np.abs(blocks).max(axis=1) > 1e-3].reshape(-1)


def embed_frames_batch(frames):
    return _model.forward(torch.from_numpy(frames).to(_device)).detach().cpu().numpy()


def embed_utterance(wav):
    wav = np.pad(wav, (0, -len(wav) % 25_600 if len(wav) else 25_600))
    spectra = np.abs(np.fft.rfft(wav.reshape(-1, 160), axis=1))[:, 1:] ** 2
    frames = spectra.reshape(-1, 160, 40, 2).mean(axis=3).astype(np.float32)
    raw = embed_frames_batch(frames).mean(axis=0)
    return raw / np.linalg.norm(raw, 2)
