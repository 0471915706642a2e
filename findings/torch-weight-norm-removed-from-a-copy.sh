#!/usr/bin/env bash
# torch 2.13.0: whoever copies a module that has weight norm by copy.deepcopy, and takes the norm off the copy (to export it,
# say), breaks the *original*: both share the class that the parametrization made, and `remove_parametrizations` takes the
# property `weight` off that class. The original then raises AttributeError when it is called. VITS and HiFi-GAN of transformers
# are made of such modules. Fails if the original survives.
#   the copy computes; the original: 'ParametrizedConv1d' object has no attribute 'weight'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

original = weight_norm(torch.nn.Conv1d(4, 4, 3))
x = torch.randn(1, 4, 9)
before = original(x)
copied = copy.deepcopy(original)
remove_parametrizations(copied, "weight")
print(type(original).__name__, type(copied).__name__)
torch.testing.assert_close(copied(x), before)
try:
    original(x)
except AttributeError as error:
    print("the original:", error)
else:
    raise SystemExit("the original survives now")
PYTHON
