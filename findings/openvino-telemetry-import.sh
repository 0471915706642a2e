#!/usr/bin/env bash
# openvino 2026.4.1 brings openvino-telemetry along as a declared dependency, and whoever merely imports openvino has an
# identifier and a file of statistics written below the home directory, outside of every XDG directory. Without the package,
# or with its name taken in sys.modules before the import, nothing is written, and OpenVINO starts as before.
# Seen with Python 3.11 on Linux, a fresh home:
#   import:                intel/openvino_ga_cid intel/stats
#   name taken before:     (nothing)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1

files() { # name, code: the files in a fresh home afterwards
  mkdir "$work/$1"
  HOME="$work/$1" timeout 120 "$work/venv/bin/python" -c "$2"
  (cd "$work/$1" && find . -type f -printf '%P\n' | sort | paste -sd' ')
}

imported=$(files imported "import openvino")
taken=$(files taken "import sys; sys.modules['openvino_telemetry'] = None; import openvino; openvino.Core()")
echo "import:                ${imported:-(nothing)}"
echo "name taken before:     ${taken:-(nothing)}"
grep -q "intel/openvino_ga_cid" <<< "$imported"
test -z "$taken"
