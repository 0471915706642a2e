#!/usr/bin/env bash
# phonemizer 3.4.0 with preserve_punctuation takes a decimal point for the full stop that ends the line: "Add 2.5 cups." is
# answered by two entries, "add two." and "five cups", although 3.4.0 is the version that keeps decimal numbers whole ("Add
# 2.5 cups" is one entry, "two point five"). Callers that read the first entry of one line lose the rest. With a space behind
# the full stop it is right. Fails if a later run differs. Seen with Python 3.11, espeak-ng of espeakng-loader 0.2.4:
#   'Add 2.5 cups.' -> ['ˈæd tˈuː. ', 'fˈaɪv kˈʌps ']      'Add 2.5 cups. ' -> ['ˈæd tˈuː pɔɪnt fˈaɪv kˈʌps. ']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check phonemizer==3.4.0 espeakng-loader==0.2.4
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import espeakng_loader
from phonemizer.backend import EspeakBackend
from phonemizer.backend.espeak.wrapper import EspeakWrapper

EspeakWrapper.set_library(espeakng_loader.get_library_path())
EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
backend = EspeakBackend("en-us", preserve_punctuation=True, with_stress=True)
said = {text: backend.phonemize([text]) for text in ("Add 2.5 cups.", "Add 2.5 cups. ", "Add 2.5 cups")}
for text, entries in said.items():
    print(f"{text!r} -> {entries}")
assert len(said["Add 2.5 cups."]) == 2 and "pɔɪnt" not in "".join(said["Add 2.5 cups."])
for text in ("Add 2.5 cups. ", "Add 2.5 cups"):
    assert len(said[text]) == 1 and "pɔɪnt" in said[text][0]
PYTHON
