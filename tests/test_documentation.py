"""The Python blocks of README and docs run as they stand, but for those that say why they do not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
HUB = "facebook/mms-tts-eng"  # stands for a folder of random weights here: there may be no network
FRAGMENT = "fragment"  # part of a script, or a signature


def blocks() -> list[tuple[str, str | None, str]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start("code")].count("\n") + 1
            found.append((f"{page.relative_to(ROOT)}:{line}", match["note"], match["code"]))
    return found


def test_every_python_block_is_found() -> None:
    assert sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES) == len(blocks()) > 5
    for name, note, _ in blocks():
        assert note is None or note == FRAGMENT or note.startswith("needs: "), f"{name} is marked {note!r}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VITS of random weights as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    folder = tmp_path_factory.mktemp("mms")
    letters = " abcdefghijklmnopqrstuvwxyz'-"
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch will do without one day
        import torch

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "ffn_dim": 48, "flow_size": 16, "duration_predictor_filter_channels": 32}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "prior_encoder_num_wavenet_layers": 2}
        upsampling = {"upsample_initial_channel": 32, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8]}
        config = transformers.VitsConfig(vocab_size=len(letters), **sizes, **layers, **upsampling)
        model = transformers.VitsModel(config).eval()
        model.decoder.conv_post.weight.data.mul_(0.05)  # else it clips
        model.save_pretrained(folder)
        transformers.VitsTokenizer(
            str(folder / "vocab.json"), phonemize=False, is_uroman=False, pad_token=" ", unk_token=" "
        ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "note", "code"), [pytest.param(*b, id=b[0]) for b in blocks() if b[1] != FRAGMENT])
def test_a_block_runs(name: str, note: str | None, code: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if note == "needs: fish-speech":
        for variable in ("ACCELERATOR_FISH_SPEECH_ROOT", "ACCELERATOR_FISH_SPEECH_CHECKPOINT"):
            if not os.environ.get(variable):
                pytest.skip(f"needs the engine: set {variable}")
        code = code.replace("checkpoints/openaudio-s1-mini", os.environ["ACCELERATOR_FISH_SPEECH_CHECKPOINT"])
    elif note is not None and importlib.util.find_spec(note.removeprefix("needs: ")) is None:
        pytest.skip(f"{note}, which is not installed")
    if HUB in code:
        code = code.replace(HUB, str(request.getfixturevalue("checkpoint")))
    paths = [str(ROOT), os.environ.get("ACCELERATOR_FISH_SPEECH_ROOT", ""), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{name} fails:\n{done.stderr}"
    for written in re.findall(r'save\("([^"]+)"\)', code):
        assert (tmp_path / written).stat().st_size > 1000
