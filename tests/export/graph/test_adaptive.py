"""Residual blocks are found as they are, and what looks like one and is none is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from accelerator.errors import ExportError
from accelerator.export.graph.adaptive import Block, has_sines, residual_blocks, write_blocks
from accelerator.export.graph.rewrite import rewrite_activations
from accelerator.export.graph.saved import SavedModel
from tests.export import residual


def anything(shape: tuple[int, ...]) -> bool:
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = residual.saved(tmp_path / "m.onnx")
    assert rewrite_activations(path) == {"norm": 12, "snake": 12}
    return path


def found(path: Path, takes: Callable[[tuple[int, ...]], bool] = anything) -> dict[str, Block]:
    return {block.out: block for block in residual_blocks(SavedModel(path), takes)}


def test_each_block_is_found_with_all_of_its_steps(path: Path) -> None:
    blocks = found(path)
    assert {out: (block.x, len(block.steps)) for out, block in blocks.items()} == {
        "/decoder/noise/1/residual": ("x", 2),
        "/decoder/short/1/residual": ("/decoder/both", 2),
        "/decoder/long/1/residual": ("/decoder/both", 2),
    }
    layers = [layer for step in blocks["/decoder/long/1/residual"].steps for layer in step]
    assert [layer.dilation for layer in layers] == [1, 1, 3, 1]
    assert [layer.kernel for layer in layers] == [f"/decoder/long/{i}/{j}/conv.w" for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose([layer.epsilon for layer in layers], 1e-5)
    assert len(blocks["/decoder/long/1/residual"].stretch.inputs) == 1 + 2 * 4


def test_what_others_read_between_two_steps_ends_a_block(path: Path) -> None:
    model = onnx.load(str(path))
    model.graph.node.append(onnx.helper.make_node("Neg", ["/decoder/noise/0/residual"], ["seen"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(path))
    assert {block.out: block.x for block in found(path).values() if "noise" in block.out} == {
        "/decoder/noise/0/residual": "x",
        "/decoder/noise/1/residual": "/decoder/noise/0/residual",
    }


@pytest.mark.parametrize(
    ("name", "value"), [("pads", [2, 0]), ("dilations", [2]), ("strides", [2]), ("auto_pad", b"SAME_UPPER")]
)
def test_another_convolution_is_in_no_block(path: Path, name: str, value: object) -> None:
    model = onnx.load(str(path))
    (conv,) = (each for each in model.graph.node if each.name == "/decoder/noise/1/1/conv")
    kept = [each for each in conv.attribute if each.name != name]
    del conv.attribute[:]
    conv.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    onnx.save(model, str(path))
    assert {block.out for block in found(path).values() if "noise" in block.out} == {"/decoder/noise/0/residual"}


def test_weights_have_the_factor_of_their_snake(path: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "cut").mkdir()
    tensors, config = write_blocks(path, folder, anything)
    assert [len(block["layers"]) for block in config["blocks"]] == [4, 4, 4]
    assert [block["after"] for block in config["blocks"]] == [0, 1, 1]
    assert config["outputs"] == ["audio", "length"]
    constants = {each.name: numpy_helper.to_array(each) for each in residual.graph().graph.initializer}
    name = "/decoder/noise/1/0"
    expected = (constants[f"{name}/conv.w"] / constants[f"{name}/snake/alpha"]).transpose(0, 2, 1)
    np.testing.assert_allclose(tensors["0.2.kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(tensors["0.2.bias"], constants[f"{name}/conv.b"])


def test_only_shapes_that_are_taken_are_in_a_block(path: Path, tmp_path: Path) -> None:
    assert {block.out for block in found(path, lambda shape: shape[2] == residual.TAPS["long"]).values()} == {
        "/decoder/long/1/residual"
    }
    with pytest.raises(ExportError, match=r"m\.onnx has no residual blocks"):
        write_blocks(path, tmp_path, lambda shape: False)


def test_sines_are_looked_for_where_they_are_wanted() -> None:
    content = residual.graph().SerializeToString()
    assert has_sines(content, "/decoder")
    assert not has_sines(content, "/encoder")
