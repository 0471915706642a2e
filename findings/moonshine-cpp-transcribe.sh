#!/usr/bin/env bash
# moonshine-cpp 0.1.4 (Moonshine base with weights in one wheel): `MoonshineModel.transcribe`, which takes samples, cannot be
# called, since it asks ctypes for a type `c_float_p` that ctypes has never had. `transcribe_wav`, which takes a path of a WAV
# file of 16 kHz and 16 bits, works: it hears the recording that comes with the package. Fails if that changes.
#   AttributeError: module 'ctypes' has no attribute 'c_float_p'; transcribe_wav answers with text
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check moonshine-cpp==0.1.4 numpy
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import pathlib
import wave

import moonshine_cpp
import numpy as np

(recording,) = pathlib.Path(moonshine_cpp.__file__).parent.rglob("beckett.wav")
with wave.open(str(recording)) as file:
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
model = moonshine_cpp.MoonshineModel()
heard = model.transcribe_wav(str(recording))
print("transcribe_wav:", heard)
assert "fail" in heard.lower()
try:
    model.transcribe(samples)
except AttributeError as error:
    print("transcribe:", error)
    assert "c_float_p" in str(error)
else:
    raise SystemExit("transcribe works now")
PYTHON
