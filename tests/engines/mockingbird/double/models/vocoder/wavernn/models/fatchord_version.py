"""WaveRNN, small: a sample at a time, drawn from a softmax; it ends in training, and fades over 20 frames."""

import numpy as np
import torch
from torch import nn

CLASSES = 16


class WaveRNN(nn.Module):
    def __init__(self, hop_length, sample_rate):
        super().__init__()
        self.hop_length, self.sample_rate = hop_length, sample_rate
        self.scale = int(np.cumproduct((4, 5))[-1])
        self.norm, self.rnn = nn.BatchNorm1d(20), nn.GRUCell(21, 8)
        self.fc3 = nn.Linear(8, CLASSES)

    def generate(self, mels, batched, target, overlap, mu_law, progress_callback=None):
        self.eval()
        with torch.no_grad():
            frames = self.norm(mels)[0].T.repeat_interleave(self.scale, dim=0)
            x, hidden, samples = torch.zeros(1, 1), torch.zeros(1, 8), []
            for number, frame in enumerate(frames[: (mels.size(-1) - 1) * self.hop_length]):
                hidden = self.rnn(torch.cat([x, frame[None]], dim=1), hidden)
                drawn = torch.distributions.Categorical(self.fc3(hidden).softmax(dim=1)).sample()
                x = (2 * drawn.float() / (CLASSES - 1) - 1)[:, None]
                samples.append(float(x))
                if number % 100 == 0:
                    (progress_callback or print)(number, len(frames), 1, 0.0)
        audio = np.array(samples)
        audio[-20 * self.hop_length :] *= np.linspace(1, 0, 20 * self.hop_length)
        self.train()
        return audio
