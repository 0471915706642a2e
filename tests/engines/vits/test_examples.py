"""VITS's parts in int8 and pruned: what they are calibrated with, and that what says nothing can be left out."""

import numpy as np
import pytest
import torch

from accelerator.cache import ContentCache
from accelerator.engines import adapter_for
from accelerator.engines.vits.examples import of_speech
from accelerator.export.component import export_component
from tests.engines.vits.tiny import pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_the_decoder_has_a_candidate_in_int8_calibrated_on_speech(engine, cache):
    (backend,) = (each for each in adapter_for(engine).parts()[1].backends if each.name == "onnxruntime-int8")
    proof = export_component(*backend.components, "int8", ContentCache(cache)).proof
    assert (proof["passed"], proof["bar"]) == (True, {"snr_db": 20.0})
    assert proof["layers"] >= 4


def test_it_is_calibrated_on_sentences_by_all_speakers(many):
    spoken = [inputs for inputs, _ in of_speech(many.model, adapter_for(many)._tokens)]
    assert len({inputs["latents"].shape for inputs in spoken}) == 12
    assert len({inputs["speaker"].tobytes() for inputs in spoken}) == 3


def test_of_a_script_that_is_not_known_tokens_are_drawn(engine):
    given = [inputs["latents"] for inputs, _ in of_speech(engine.model, lambda text: np.zeros((1, 1), np.int64))]
    assert [each.shape[2] >= 12 * (n + 1) for n, each in enumerate(given)] == [True] * 12


def without_less(tmp_path, engine, part, share):
    """The name of the first way to prune a part, and its proof."""
    way = adapter_for(engine).parts()[part].pruned(share)[0]
    return way.component.name, export_component(way.component, "fp32", ContentCache(tmp_path / "cache")).proof


def test_heads_that_say_nothing_are_cut_out_exactly(tmp_path):
    own = pipeline(tmp_path, num_attention_heads=4)
    for number, layer in enumerate(own.model.text_encoder.encoder.layers):
        with torch.no_grad():
            layer.attention.out_proj.weight[:, 8 * number : 8 * (number + 1)] = 0
    name, proof = without_less(tmp_path, own, 0, 0.25)
    assert (name, proof["bar"]) == ("text-without-heads", {"snr_db": 60.0})  # lengths depend on it
    assert proof["snr_db"] > 80.0
    assert own.model.text_encoder.encoder.layers[0].attention.num_heads == 4


def test_channels_that_say_nothing_are_cut_out_exactly(tmp_path):
    own = pipeline(tmp_path)
    decoder = own.model.decoder
    for layer in (decoder.conv_pre, *(layer for block in decoder.resblocks for layer in block.convs1)):
        with torch.no_grad():
            layer.weight[::2] = 0
            layer.bias[::2] = 0
    name, proof = without_less(tmp_path, own, 1, 0.5)
    assert name == "decoder-without-channels"
    assert proof["snr_db"] > 80.0
    assert proof["bytes"] < 0.95
