import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from accelerator.reference import SIZES, load
from accelerator.reference.codec import Codec, CodecDecode, CodecEncode, inverse_stft_basis
from accelerator.reference.config import (
    DACDecoderConfig,
    EncoderConfig,
    ISTFTDecoderConfig,
    QuantizerConfig,
    STFTEncoderConfig,
)
from accelerator.reference.weights import build, random_weights


def codes_for(codec: Codec, frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    sizes = codec.quantizer.sizes
    return torch.stack([torch.randint(0, n, (batch, frames), generator=source) for n in sizes], dim=1)


@pytest.fixture(scope="module", params=["tiny", "small"])
def codec(request) -> Codec:
    return load(request.param).codec


@torch.inference_mode()
def test_shapes_and_level(codec):
    audio = codec.decode(codes_for(codec, 40, batch=2))
    assert audio.shape == (2, 40 * codec.hop)
    assert audio.isfinite().all()
    assert audio.abs().max() < 1
    assert audio.square().mean().sqrt() > 0.01
    assert codec.encode(audio[:, : 3 * codec.hop + 1]).shape == (2, len(codec.quantizer.sizes), 4)


@torch.inference_mode()
def test_decoding_is_causal_within_its_receptive_field(codec):
    reach = codec.receptive_field_frames
    codes = codes_for(codec, reach + 12)
    changed = codes.clone()
    changed[:, :, 5] = (changed[:, :, 5] + 1) % 16
    moved = (codec.decode(codes) - codec.decode(changed)).abs().unflatten(1, (-1, codec.hop)).amax(2)[0]
    assert moved[:5].max() < 1e-6
    assert moved[5] > 1e-3
    assert moved[5 + reach :].max() < 1e-6


@torch.inference_mode()
def test_encoding_is_causal_and_pads_by_itself(codec):
    audio = torch.randn(1, 10 * codec.hop, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = codec.encode(audio)
    for length in (1, 4 * codec.hop, 4 * codec.hop + 1, 5 * codec.hop - 1):
        full = length // codec.hop
        part = codec.encode(audio[:, :length])
        assert part.shape[2] == -(-length // codec.hop)
        assert part[..., :full].equal(whole[..., :full])
        zeros = torch.zeros(1, part.shape[2] * codec.hop - length)
        assert part.equal(codec.encode(torch.cat((audio[:, :length], zeros), dim=1)))


@torch.inference_mode()
def test_quantizer_codes_the_residual(tiny):
    """Codes by hand, one book after the other, by cosine similarity in the projected space."""
    quantizer = tiny.codec.quantizer
    z = torch.randn(1, 32, 7, generator=torch.Generator().manual_seed(0))
    codes = quantizer.quantize(z)
    rest = z[0].T  # [7, 32]
    total = torch.zeros(7, 32)
    for i, book in enumerate(quantizer.books):
        low = rest @ book.project_in.weight[:, :, 0].T + book.project_in.bias
        similarity = torch.nn.functional.cosine_similarity(low[:, None], book.codebook.weight[None], dim=2)
        assert codes[0, i].tolist() == similarity.argmax(1).tolist()
        step = book.codebook.weight[codes[0, i]] @ book.project_out.weight[:, :, 0].T + book.project_out.bias
        rest, total = rest - step, total + step
    torch.testing.assert_close(quantizer.dequantize(codes)[0].T, total, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_trained_book_gives_back_its_codes():
    """With project_in as the inverse of project_out, every code survives the round trip."""
    _, codec = random_weights(SIZES["tiny"], seed=0)
    book = codec.quantizer.books[0]
    matrix = book.project_out.weight[:, :, 0]  # [32, 4]
    book.project_in.weight.copy_(torch.linalg.pinv(matrix)[:, :, None])
    book.project_in.bias.copy_(-torch.linalg.pinv(matrix) @ book.project_out.bias)
    codes = torch.arange(64)[None]
    assert book.encode(book.decode(codes)).equal(codes)


@torch.inference_mode()
def test_codes_past_their_book_count_as_the_last(tiny):
    codes = codes_for(tiny.codec, 6)
    beyond, last = codes.clone(), codes.clone()
    beyond[:, 2], last[:, 2] = 60, 31
    assert tiny.codec.decode(beyond).equal(tiny.codec.decode(last))


def test_inverse_stft_undoes_the_stft():
    n_fft, hop = 64, 16
    signal = torch.randn(640, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(n_fft)
    spectrum = torch.fft.rfft(signal.unfold(0, n_fft, hop) * window)  # [37, 33]
    frames = torch.cat((spectrum.real, spectrum.imag), dim=1) @ inverse_stft_basis(n_fft)
    rebuilt = torch.zeros(640)
    for i, frame in enumerate(frames):
        rebuilt[i * hop : i * hop + n_fft] += frame
    torch.testing.assert_close(rebuilt[n_fft:-n_fft], signal[n_fft:-n_fft], atol=1e-5, rtol=1e-5)


def test_s1_mini_has_the_real_number_of_parameters():
    language_model, codec = build(SIZES["s1-mini"])
    count = {name: sum(p.numel() for p in m.parameters()) / 1e6 for name, m in codec.named_children()}
    count["language_model"] = sum(p.numel() for p in language_model.parameters()) / 1e6
    assert count == pytest.approx({"language_model": 860, "encoder": 77, "quantizer": 260, "decoder": 54}, rel=0.01)
    assert codec.hop == 2048
    assert len(language_model.config.candidate_ids) == 4097


def test_small_fits_its_budget():
    language_model, codec = (sum(p.numel() for p in module.parameters()) for module in build(SIZES["small"]))
    assert language_model + 2 * codec < 15_900_000  # bytes: matrices of the one in eight bits, the other's in half


def exported(module: torch.nn.Module, example: torch.Tensor, time_axis: int, path) -> onnxruntime.InferenceSession:
    shapes = ({0: torch.export.Dim.DYNAMIC, time_axis: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        torch.onnx.export(module, (example,), path, dynamo=True, dynamic_shapes=shapes, opset_version=20, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_decoder_exports(codec: Codec, path) -> None:
    """At lengths and batch sizes other than the exported ones."""
    session = exported(CodecDecode(codec), codes_for(codec, 13, batch=2), 2, path)
    for batch, frames in ((1, 1), (1, 29), (2, 6)):
        codes = codes_for(codec, frames, batch=batch, seed=frames)
        (audio,) = session.run(None, {"codes": codes.numpy()})
        np.testing.assert_allclose(audio, codec.decode(codes).numpy(), atol=1e-4)


def assert_encoder_exports(codec: Codec, path) -> None:
    noise = torch.randn(3, 9 * codec.hop, generator=torch.Generator().manual_seed(0)) * 0.1
    session = exported(CodecEncode(codec), noise[:2, : 5 * codec.hop + 3], 1, path)
    for batch, length in ((1, 1), (1, 8 * codec.hop), (2, 3 * codec.hop - 5)):
        audio = noise[:batch, :length]
        (codes,) = session.run(None, {"audio": audio.numpy()})
        np.testing.assert_array_equal(codes, codec.encode(audio).numpy())


HALVES = [
    (EncoderConfig(dim=4, rates=(8,)), DACDecoderConfig(dim=8, rates=(8,))),
    (
        STFTEncoderConfig(dim=8, layers=1, ffn_dim=16, hop=8, n_fft=32),
        ISTFTDecoderConfig(dim=8, layers=1, ffn_dim=16, hop=8, n_fft=32),
    ),
]


@pytest.mark.parametrize(("encoder", "decoder"), HALVES, ids=["dac", "stft"])
def test_codec_exports_with_dynamic_shapes(encoder, decoder, tmp_path):
    """Every kind of layer once; the sizes in use are exported in the slow test below."""
    tiny = SIZES["tiny"].codec
    stack = replace(tiny.quantizer.transformer, dim=8, head_dim=4, ffn_dim=8)
    config = replace(
        tiny,
        latent_dim=8,
        encoder=encoder,
        quantizer=QuantizerConfig(codebook_sizes=(16, 8), codebook_dim=4, downsample=(2,), transformer=stack),
        decoder=decoder,
    )
    lm = replace(SIZES["tiny"].language_model, codebooks=2)
    _, codec = random_weights(replace(SIZES["tiny"], language_model=lm, codec=config), seed=0)
    assert_decoder_exports(codec, tmp_path / "decode.onnx")
    assert_encoder_exports(codec, tmp_path / "encode.onnx")


@pytest.mark.slow
def test_codecs_in_use_export(codec, tmp_path):
    assert_decoder_exports(codec, tmp_path / "decode.onnx")
    assert_encoder_exports(codec, tmp_path / "encode.onnx")
