#!/usr/bin/env bash
# kittenml 0.9.6 (and the head of KittenTTS' repository, 395171a): generate_to_file() speaks another text than generate() and
# generate_stream() with the same arguments. These two leave a text as it is unless clean_text=True; the former has no such
# argument, and the method that it calls cleans by default. Fails if a later run differs. Seen with Python 3.11:
#   generate: 'Dr. Smith paid $5 on May 3.'      generate_to_file: 'dr. smith paid five dollars on may three.'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check phonemizer==3.4.0 espeakng-loader==0.2.4 \
  onnxruntime==1.32.0 soundfile huggingface_hub
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps kittenml==0.9.6  # its others are of KittenTTS 2
cd "$work"
ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from kittenml.kittentts_legacy.model import KittenTTSOnnx
from kittenml.kittentts_legacy.onnx_model import KittenTTS_1_Onnx, TextPreprocessor

spoken = []
engine, engine_model = object.__new__(KittenTTSOnnx), object.__new__(KittenTTS_1_Onnx)  # without weights
engine.model, engine_model.preprocessor = engine_model, TextPreprocessor(remove_punctuation=False)
engine_model.generate_single_chunk = lambda text, voice, speed: spoken.append(text) or np.zeros(100, np.float32)
text = "Dr. Smith paid $5 on May 3."
engine.generate(text)
by_generate, spoken[:] = list(spoken), []
list(engine.generate_stream(text))
by_stream, spoken[:] = list(spoken), []
engine.generate_to_file(text, "a.wav")
print(f"generate: {by_generate}, generate_stream: {by_stream}, generate_to_file: {spoken}")
assert by_generate == by_stream == [text]
assert spoken != by_generate and "five dollars" in spoken[0]
PYTHON
