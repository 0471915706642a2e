#!/usr/bin/env bash
# speechmos 0.0.1.1 (DNSMOS and PLCMOS as ONNX files in one wheel) declares no dependencies at all, and imports librosa first of
# all: `pip install speechmos` succeeds, and the first import fails. Fails if
# that changes.
#   Requires: nothing; ModuleNotFoundError on `from speechmos import dnsmos`
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check speechmos==0.0.1.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata

declared = importlib.metadata.requires("speechmos")
print("Requires:", declared)
assert not declared
try:
    from speechmos import dnsmos  # noqa: F401
except ModuleNotFoundError as error:
    print(error)
else:
    raise SystemExit("it can be imported now")
PYTHON
