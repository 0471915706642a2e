#!/usr/bin/env bash
# spark-tts-lib 0.2.1 with torch 2.13.0: loading BiCodec ends with `remove_weight_norm()`, as inference code does to compute each
# convolution's weight once. The norms are torch.nn.utils.parametrizations', but torch.nn.utils.remove_weight_norm knows only the
# older hooks and raises ValueError, which is caught: all norms stay, and every call computes all weights anew. Whoever exports or
# reads the weights of a loaded engine finds `parametrizations.weight.original0` in place of `weight`. Fails if norms are removed.
#   normed convolutions before: 30, after remove_weight_norm(): 30
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy einops==0.8.2 einx==0.4.3 omegaconf \
    safetensors soundfile soxr tqdm transformers==5.24.0 retrying
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps spark-tts-lib==0.2.1 torchaudio==2.8.0
rm -f "$work"/venv/lib/python3*/site-packages/torchaudio/lib/*.so  # made for another torch; the transforms used are Python
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import warnings

warnings.simplefilter("ignore")

from spark_tts_lib.models.bicodec import BiCodec
from spark_tts_lib.modules.encoder_decoder.wave_generator import WaveGenerator
from torch.nn.utils.parametrize import is_parametrized


def normed(model):
    return sum(is_parametrized(module, "weight") for module in model.modules())


decoder = WaveGenerator(input_channel=32, channels=32, rates=[8, 5, 4, 2], kernel_sizes=[16, 11, 8, 4])
before = normed(decoder)
BiCodec.remove_weight_norm(decoder)  # applies it to each module of what it is called on
after = normed(decoder)
print(f"normed convolutions before: {before}, after remove_weight_norm(): {after}")
assert before == after > 0
PYTHON
