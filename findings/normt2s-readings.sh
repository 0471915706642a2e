#!/usr/bin/env bash
# normt2s 0.7.0 reads an aeroplane as a chemical element, makes a plural of the wrong word of "mile per hour", and leaves the
# magnitude behind an amount of money unread. A normaliser for speech should say "F sixteen", "fifty five miles per hour" and
# "one point five million dollars". Fails if a later run reads them otherwise. Seen with Python 3.11 on Linux:
#   An F-16 flew by.  -> ... fluorine sixteen ...
#   At 55 mph.        -> ... mile per hours ...
#   It cost $1.5M.    -> ... centsM ...
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check normt2s==0.7.0
"$work/venv/bin/python" - <<'PYTHON'
import normt2s

for text, odd in (("An F-16 flew by.", "fluorine sixteen"), ("At 55 mph.", "mile per hours"), ("It cost $1.5M.", "centsM")):
    said = str(normt2s.normalize(text))
    print(f"{text} -> {said}")
    assert odd in said, f"it no longer says {odd!r}"
PYTHON
