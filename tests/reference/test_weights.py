import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import accelerator.reference
from accelerator.reference import SIZES, ReferenceEngineError, load
from accelerator.reference.config import from_json, to_json
from accelerator.reference.weights import save_weights


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_saved_engine_speaks_the_same(size, tmp_path):
    engine = load(size, seed=5)
    engine.save(tmp_path / "voice.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["voice.safetensors"]
    again = load(path=tmp_path / "voice.safetensors")
    assert again.config == engine.config
    assert not any(p.requires_grad for _, p in again.named_parameters())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in engine.named_parameters()]
    expected, _ = engine.synthesize("Hi.", seed=0, max_new_tokens=5)
    np.testing.assert_array_equal(again.synthesize("Hi.", seed=0, max_new_tokens=5)[0], expected)


def test_half_precision_files_load_as_float32(tmp_path):
    path = tmp_path / "voice.safetensors"
    load("tiny").save(path)
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "accelerator-reference-1", "config": to_json(SIZES["tiny"])})
    assert {p.dtype for _, p in load(path=path).named_parameters()} == {torch.float32}


def test_eight_bits_are_a_quarter_of_the_size_and_near(tmp_path):
    engine = load("tiny")
    paths = [tmp_path / "whole.safetensors", tmp_path / "rounded.safetensors"]
    for path in paths:
        save_weights(path, engine.config, engine.language_model, engine.codec, eight_bits=path is paths[1])
    for (name, own), (_, rounded) in zip(
        engine.named_parameters(), load(path=paths[1]).named_parameters(), strict=True
    ):
        if name.startswith("language_model.") and own.ndim == 2:
            step = own.abs().amax(1, keepdim=True) / 127
            assert ((own - rounded).abs() <= 0.501 * step).all(), name
            assert not own.equal(rounded)
        else:
            assert own.equal(rounded), name
    matrices = sum(p.numel() for n, p in engine.named_parameters() if n.startswith("language_model.") and p.ndim == 2)
    saved = paths[0].stat().st_size - paths[1].stat().st_size
    assert 2.5 * matrices < saved < 3 * matrices


@pytest.mark.parametrize("name", list(SIZES))
def test_configurations_survive_json(name):
    assert from_json(to_json(SIZES[name])) == SIZES[name]


def test_unusable_files_are_refused(tmp_path):
    path = tmp_path / "voice.safetensors"
    with pytest.raises(ReferenceEngineError, match="cannot read the weights"):
        load(path=path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ReferenceEngineError, match="cannot read the weights"):
        load(path=path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ReferenceEngineError, match="is not a file of this engine"):
        load(path=path)
    save_file(
        {"x": torch.zeros(1)}, path, metadata={"format": "accelerator-reference-1", "config": to_json(SIZES["tiny"])}
    )
    with pytest.raises(ReferenceEngineError, match="does not hold the weights"):
        load(path=path)
    load("tiny").save(path)
    with pytest.raises(ReferenceEngineError, match="of size 'tiny', not 'small'"):
        load("small", path=path)


def test_unknown_configuration_fields_are_refused():
    data = json.loads(to_json(SIZES["tiny"]))
    data["language_model"]["surprise"] = 1
    with pytest.raises(ReferenceEngineError, match="surprise"):
        from_json(json.dumps(data))


def test_the_engine_could_be_a_project_of_its_own():
    """No import leads out of the folder into the rest of the package, but for what reads recordings."""
    for path in Path(accelerator.reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 or (path.name, node.module) == ("audio.py", "audio.checks"), path
                assert not (node.module or "").startswith("accelerator"), path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("accelerator") for alias in node.names), path


def test_an_engine_opens_without_torchs_compiler():
    """Which takes half a second to import."""
    code = "import sys; from accelerator.reference import load; load('tiny'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"
