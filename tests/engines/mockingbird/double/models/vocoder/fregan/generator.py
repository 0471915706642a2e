"""Fre-GAN by the names of its layers, small: a spectrogram joins at a later stage, too, and outputs are added up."""

import torch
import torch.nn.functional as F
from models.vocoder.hifigan.models import Generator
from torch import nn


class FreGAN(Generator):
    def __init__(self):
        super().__init__()
        self.cond_up = nn.ModuleList([nn.ConvTranspose1d(20, 8, 10, 5, padding=3, output_padding=1)])
        self.res_output = nn.ModuleList([nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv1d(8, 4, 1))])

    def forward(self, mel):
        x = self.conv_pre(mel)
        x = self.ups[0](F.leaky_relu(x, 0.1))
        x = sum(block(x) for block in self.resblocks[:2]) / 2 + self.cond_up[0](mel)
        output = self.res_output[0](x)
        x = self.ups[1](F.leaky_relu(x, 0.1))
        output = output + sum(block(x) for block in self.resblocks[2:]) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(output)))
