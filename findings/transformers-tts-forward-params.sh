#!/usr/bin/env bash
# transformers 5.24.0: `forward_params` given to pipeline("text-to-speech", ...) when it is made never reach the model; the same
# argument given to the call does. The other arguments of a pipeline are defaults of its calls. So a voice of many speakers speaks
# as nobody, or as the first, though a speaker was named. Fails if a later run differs. Seen with Python 3.11 on Linux:
#   when it is made -> speaker None      when it is called -> speaker 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import json
import pathlib

from transformers import VitsConfig, VitsModel, VitsTokenizer, pipeline

letters = " abcdefghijklmnopqrstuvwxyz'-"
pathlib.Path("vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
tokenizer = VitsTokenizer("vocab.json", phonemize=False, pad_token=" ", unk_token="'")
sizes = {name: 16 for name in ("hidden_size", "ffn_dim", "upsample_initial_channel", "duration_predictor_filter_channels")}
model = VitsModel(
    VitsConfig(
        vocab_size=len(letters), num_hidden_layers=1, num_speakers=3, speaker_embedding_size=4, flow_size=8,
        upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], **sizes,
    )
).eval()
asked, forward = [], model.forward


def noting(*inputs, **options):
    asked.append(options.get("speaker_id"))
    return forward(*inputs, **options)


model.forward = noting
speaks = pipeline("text-to-speech", model=model, tokenizer=tokenizer, forward_params={"speaker_id": 2})
speaks("hello there")
speaks("hello there", forward_params={"speaker_id": 2})
print(f"when it is made: speaker {asked[0]}; when it is called: speaker {asked[1]}")
assert asked == [None, 2]
PYTHON
