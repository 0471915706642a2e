#!/usr/bin/env bash
# onnxruntime 1.32.0 for Linux writes an identifier of the device and a database of telemetry events below the user's cache
# directory when it is merely imported; nothing has to be run. `onnxruntime.disable_telemetry_events()` comes too late for it, since
# it needs the import. ORT_DISABLE_TELEMETRY=1 set before the import prevents both files; set after it, it does not.
# Seen with Python 3.11, a fresh home:
#   import:               deviceid onnxruntime.db
#   import, then switch:  deviceid onnxruntime.db
#   variable before:      (nothing)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0
unset ORT_DISABLE_TELEMETRY

files() { # name, code: the files in a fresh home afterwards
  mkdir "$work/$1"
  HOME="$work/$1" XDG_CACHE_HOME="$work/$1/cache" "$work/venv/bin/python" -c "$2"
  find "$work/$1" -type f -printf '%f\n' | sort | paste -sd' '
}

imported=$(files imported "import onnxruntime")
switched=$(files switched "import onnxruntime; onnxruntime.disable_telemetry_events()")
before=$(files before "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime")
echo "import:               ${imported:-(nothing)}"
echo "import, then switch:  ${switched:-(nothing)}"
echo "variable before:      ${before:-(nothing)}"
test "$imported" = "deviceid onnxruntime.db"
test "$switched" = "deviceid onnxruntime.db"
test -z "$before"
