#!/usr/bin/env bash
# soundfile 0.14.0 with libsndfile 1.2.2 writes float32 to 8-bit PCM (WAV subtype PCM_U8) by rounding down, not to the nearest
# value. So a pause that holds nothing but inaudible noise comes back as a flicker of one step around -0.004, at -45 dBFS, and
# one that lies a millionth below zero as a steady -0.0078. Whoever looks for pauses, or clones a voice from such a recording,
# finds noise and an offset that the recording did not have. Exact zeros stay zeros. Fails if that changes.
#   noise of 1e-6 around zero reads back with mean -0.0039 and peak 0.0078; -1e-6 throughout as -0.0078 throughout
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import soundfile


def read_back(audio):
    soundfile.write("pause.wav", audio.astype(np.float32), 8000, subtype="PCM_U8")
    return soundfile.read("pause.wav", dtype="float32")[0]


noise = 1e-6 * np.random.default_rng(0).standard_normal(8000)
answers = {"zeros": read_back(np.zeros(8000)), "noise": read_back(noise), "below": read_back(np.full(8000, -1e-6))}
for name, audio in answers.items():
    print(f"{name}: mean {audio.mean():.4f}, peak {np.abs(audio).max():.4f}")
assert not answers["zeros"].any()
assert 0.003 < -answers["noise"].mean() < 0.005
assert np.unique(answers["below"]).tolist() == [-1 / 128]
PYTHON
