"""fish-speech's codec beside its PyTorch rewrite, whole and window by window. Setup: see installed.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import kernels
from accelerator.codec import convolutions
from accelerator.codec.convolutions import has_bf16, reduced
from accelerator.engines.fish_speech import adapter as adapters
from accelerator.engines.fish_speech import examples, rewrite, stored
from accelerator.engines.fish_speech.adapter import FishSpeechAdapter
from accelerator.engines.fish_speech.codec import decode_context
from accelerator.engines.fish_speech.structure import computing
from accelerator.errors import SessionError, UnsupportedEngine
from accelerator.export.component import Built, Component
from accelerator.export.proof import compare_signals
from accelerator.runtime.options import Dtype, RunOptions
from tests.engines.fish_speech.installed import CHECKPOINT, CODEC, ROOT, engine_test

pytestmark = engine_test


@pytest.fixture(scope="module")
def adapter() -> Iterator[FishSpeechAdapter]:
    assert ROOT is not None
    assert CHECKPOINT is not None
    sys.path.insert(0, ROOT)
    yield FishSpeechAdapter.from_checkpoint(CHECKPOINT, decoder_config_name=CODEC)
    sys.path.remove(ROOT)


@pytest.fixture(scope="module")
def folder(adapter: FishSpeechAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both rewrites, as their components build them."""
    folder = tmp_path_factory.mktemp("rewrites")
    for name in ("encoder", "decoder"):
        component = component_of(adapter, name)
        (folder / component.name).mkdir()
        component.build(folder / component.name, "fp32", lambda event: None)
    return folder


def codes_of(adapter: FishSpeechAdapter, frames: int, seed: int = 0) -> np.ndarray:
    return examples.codes(adapter.codec.shell, adapter.spec.codebooks, frames, seed)


def component_of(adapter: FishSpeechAdapter, name: str) -> Component:
    """The component of a part rewritten in PyTorch."""
    (part,) = (part for part in adapter.parts() if part.name == name)
    return next(
        component for backend in part.backends for component in backend.components if "rewrite" in component.name
    )


@pytest.fixture
def decode(folder: Path) -> rewrite.DecodeCall:
    return rewrite.DecodeCall(folder / "decoder-rewrite" / stored.FILE)


def own(adapter: FishSpeechAdapter, codes: np.ndarray) -> np.ndarray:
    """What the engine's codec makes of codes, in float32."""
    codec, frames = adapter.codec.get(), torch.from_numpy(codes.copy())[None]
    with computing():
        if adapter.layout.codec_call == "decode":
            return codec.decode(frames, torch.tensor([codes.shape[1]]))[0][0, 0].numpy()
        return codec.from_indices(frames)[0, 0].numpy()


def test_the_adapter_loads_the_rewrite(adapter: Any, decode: Any, folder: Path) -> None:
    loaded = adapters._load_rewritten_decoder(
        {"decoder-rewrite": folder / "decoder-rewrite"}, RunOptions(backend="onednn")
    )
    codes = codes_of(adapter, 5)
    np.testing.assert_array_equal(loaded(codes), decode(codes))


@pytest.mark.parametrize("frames", [1, 2, 17, 70, 131])
def test_the_rewrite_decodes_what_the_codec_decodes(adapter: Any, decode: Any, frames: int) -> None:
    codes = codes_of(adapter, frames, seed=3)
    np.testing.assert_allclose(decode(codes), own(adapter, codes), atol=1e-4, rtol=0)


def test_codes_beyond_a_codebook_count_as_its_last(adapter: Any, decode: Any) -> None:
    codes = codes_of(adapter, 9)
    codes[1:, 4] = 4095
    np.testing.assert_allclose(decode(codes), own(adapter, codes), atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [1, 5, 20, 64, 90])
def test_a_stream_joins_to_the_whole(adapter: Any, decode: Any, window: int) -> None:
    codes = codes_of(adapter, 150, seed=window)
    stream = decode.stream()
    joined = np.concatenate([stream.push(codes[:, i : i + window]) for i in range(0, 150, window)])
    np.testing.assert_allclose(joined, own(adapter, codes), atol=1e-4, rtol=0)


def test_decodes_from_many_threads(adapter: Any, decode: Any) -> None:
    codes = [codes_of(adapter, 24, seed=seed) for seed in range(4)]
    expected = [own(adapter, each) for each in codes]

    def windows(i: int) -> np.ndarray:
        stream = decode.stream()
        return np.concatenate([stream.push(codes[i % 4][:, j : j + 8]) for j in (0, 8, 16)])

    with ThreadPoolExecutor(8) as pool:
        for i, audio in enumerate(pool.map(windows, range(16))):
            np.testing.assert_allclose(audio, expected[i % 4], atol=1e-4, rtol=0)


def test_streams_do_not_mix(adapter: Any, decode: Any) -> None:
    a, b = codes_of(adapter, 24, seed=1), codes_of(adapter, 24, seed=2)
    first, second = decode.stream(), decode.stream()
    parts = [(first.push(a[:, i : i + 8]), second.push(b[:, i : i + 8])) for i in (0, 8, 16)]
    for codes, joined in zip((a, b), zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(np.concatenate(joined), own(adapter, codes), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "least", "most"), [("bf16", 30.0, 80.0), ("int16", 45.0, 100.0)])
def test_less_than_float32_is_close(adapter: Any, folder: Path, dtype: Dtype, least: float, most: float) -> None:
    if dtype == "bf16" and not has_bf16():
        pytest.skip("PyTorch has no products of bfloat16 for this processor")
    if dtype == "int16" and not kernels.available():
        pytest.skip("compiled kernels need AVX2 and numba")
    options = RunOptions(backend="onednn", dtype=dtype)
    low = adapters._load_rewritten_decoder({"decoder-rewrite": folder / "decoder-rewrite"}, options)
    codes = codes_of(adapter, 30)
    figures = compare_signals([(own(adapter, codes), low(codes))], least)
    assert figures["passed"], figures
    assert figures["snr_db"] < most, f"{dtype} was not used"


def test_the_rewrite_encodes_what_the_codec_encodes(adapter: Any, folder: Path) -> None:
    encode = adapters._load_rewritten_encoder(
        {"encoder-rewrite": folder / "encoder-rewrite"}, RunOptions(backend="onednn")
    )
    for samples in (1, 2048, 5 * 2048 + 7, 140 * 2048):
        audio = examples.noise(adapter.codec.shell, 140)[:samples]
        codes = encode(audio)
        expected = adapter._encode_in_torch(audio)
        assert codes.shape == expected.shape
        assert (codes == expected).mean() >= 0.99
        assert codes.dtype == np.int64


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_proof_passes_the_rewrite_and_catches_a_wrong_weight(adapter: Any, folder: Path, part: str) -> None:
    component = component_of(adapter, part)
    where = folder / component.name
    report = component.prove(Built(where, "fp32", where))
    assert report["passed"], report
    json.dumps(report)
    if part == "decoder" and (low := reduced()):
        assert report[low]["bar"] == {"snr_db": 40.0}
    file = where / stored.FILE
    kept, (weights, config) = file.read_bytes(), rewrite.load(file)
    try:
        wrong = {name: tensor.clone() for name, tensor in weights.tensors.items()}
        name = "stages.2.units.1.first.kernel" if part == "decoder" else "stages.3.kernel"
        wrong[name] = wrong[name].flip(1)
        made = stored._File()
        made.tensors = wrong
        made.save(file, config)
        assert not component.prove(Built(where, "fp32", where))["passed"]
    finally:
        file.write_bytes(kept)


def test_without_anything_less_nothing_is_said_of_it(adapter: Any, folder: Path, monkeypatch: Any) -> None:
    component = component_of(adapter, "decoder")
    monkeypatch.setattr(convolutions, "reduced", lambda: None)
    report = component.prove(Built(folder / component.name, "fp32", folder))
    assert report["passed"]
    assert not {"bf16", "int16"} & set(report)


def test_a_damaged_rewrite_is_said_to_be_one(adapter: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / stored.FILE).write_bytes((folder / "decoder-rewrite" / stored.FILE).read_bytes()[:5000])
    with pytest.raises(SessionError, match="decoder's PyTorch rewrite failed"):
        adapters._load_rewritten_decoder({"decoder-rewrite": tmp_path}, RunOptions(backend="onednn"))


def test_the_context_is_derived_and_suffices(adapter: Any, decode: Any) -> None:
    context, hop = adapter.context_frames, adapter.samples_per_frame
    quantizer = adapter.codec.shell.quantizer
    seen = len(quantizer.post_module.layers) * (quantizer.post_module.window_size - 1)
    assert seen < context < seen + 40, "the transformer's window, layer by layer, and a few frames of convolutions"
    codes = codes_of(adapter, context + 60)
    whole = decode(codes)
    for start, end in ((context, context + 7), (context + 20, context + 60)):
        part = decode(codes[:, start - context : end])[context * hop :]
        np.testing.assert_allclose(part, whole[start * hop : end * hop], atol=1e-4, rtol=0)
    changed = codes.copy()
    changed[:, 0] = (changed[:, 0] + 500) % 1024
    far = np.abs(decode(changed) - whole)
    assert far[:hop].max() > 1e-3
    assert far[(context + 1) * hop :].max() < 1e-5, "rounding only, which a tile of a filter shares"


def test_a_transformer_without_a_window_has_no_context(adapter: Any) -> None:
    module = adapter.codec.shell.quantizer.post_module
    kept, module.window_size = module.window_size, None
    try:
        with pytest.raises(UnsupportedEngine, match="without limit"):
            decode_context(adapter.codec.shell)
    finally:
        module.window_size = kept
