"""What an adapter uses of MockingBird's `vocoder.fregan.inference`."""

import json

import torch
from models.vocoder.fregan.generator import FreGAN

generator = None
output_sample_rate = None
_device = None


def load_model(path, config=None, verbose=True):
    global generator, output_sample_rate, _device
    settings = json.loads(config.read_text())
    torch.manual_seed(settings["seed"])
    output_sample_rate, _device = settings["sampling_rate"], torch.device("cpu")
    generator = FreGAN()
    generator.load_state_dict(torch.load(path)["generator"])
    generator.eval()


def infer_waveform(mel, progress_callback=None):
    with torch.no_grad():
        return generator(torch.FloatTensor(mel)[None]).squeeze().numpy(), output_sample_rate
