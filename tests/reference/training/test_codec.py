import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from accelerator.reference import ReferenceEngineError
from accelerator.reference.config import ISTFTDecoderConfig, STFTEncoderConfig, from_json, to_json
from accelerator.reference.spectra import log_mel, mel_bands, reconstruction_loss
from accelerator.reference.training.codec import (
    CodecTask,
    _begin_books,
    adopt,
    encoding,
    train_codec,
    train_decoder,
    trained_codec,
)
from accelerator.reference.training.corpus import Clip, open_corpus
from accelerator.reference.training.loop import Schedule
from accelerator.reference.training.pause import Pause
from accelerator.reference.training.quantizer import Usage, quantize
from accelerator.reference.training.tokens import encode, open_tokens, tokenize
from accelerator.reference.training.voice import VOICE
from accelerator.reference.weights import random_weights, save_weights

_STACK = replace(VOICE.codec.quantizer.transformer, dim=16, heads=2, kv_heads=2, head_dim=8, ffn_dim=16)
SMALL = replace(
    VOICE,
    codec=replace(
        VOICE.codec,
        latent_dim=16,
        encoder=STFTEncoderConfig(dim=16, layers=1, ffn_dim=16, hop=160, n_fft=640),
        quantizer=replace(
            VOICE.codec.quantizer, codebook_sizes=(16,) * VOICE.language_model.codebooks, transformer=_STACK
        ),
        decoder=ISTFTDecoderConfig(dim=16, layers=1, ffn_dim=16, hop=160, n_fft=640),
    ),
)


@pytest.fixture
def work(tmp_path):
    """A corpus of twelve gliding tones."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines, pieces, start = [], [], 0
    for i in range(12):
        time = np.arange(16_000 + 500 * i) / 16_000
        audio = (8000 * np.sin(2 * np.pi * (150 + 20 * i + 40 * time) * time)).astype(np.int16)
        split = ("train", "train", "valid", "heldout")[i % 4]
        sha = hashlib.sha256(audio.tobytes()).hexdigest()
        clip = Clip(f"{i:06d}", "tone", split, "slt", f"tone number {i}.", audio.size, sha, start)
        lines.append(json.dumps(asdict(clip)))
        pieces.append(audio)
        start += audio.size
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    np.concatenate(pieces).tofile(folder / "audio.i16")
    return tmp_path


def test_quantizing_in_training_is_what_the_engine_does():
    codec = random_weights(SMALL, 0)[1]
    z = torch.randn(2, 16, 9, generator=torch.Generator().manual_seed(0))
    found = quantize(codec.quantizer.books, z)
    codes = codec.quantizer.quantize(z)
    assert torch.stack(found.codes, dim=1).equal(codes)
    torch.testing.assert_close(found.latents, codec.quantizer.dequantize(codes), atol=1e-4, rtol=1e-4)
    assert found.commitment > 0
    assert found.commitment == found.codebook


def test_dead_codes_are_moved_to_latents():
    codec = random_weights(SMALL, 0)[1]
    books = list(codec.quantizer.books)
    usage = Usage(codec.quantizer.sizes)
    z = torch.randn(2, 16, 30, generator=torch.Generator().manual_seed(0))
    for step in range(10):
        found = quantize(books, z)
        usage.update(found, books)
        if step == 0:  # every code begins where a latent is
            assert all(
                (book.codebook.weight[:, None] == low).all(2).any(1).all()
                for book, low in zip(books, found.inputs, strict=True)
            )
    assert 0.3 < usage.report()["usage"] <= 1


def test_config_with_the_spectral_encoder_survives_json():
    assert from_json(to_json(VOICE)) == VOICE
    with pytest.raises(ReferenceEngineError, match="four hops"):
        STFTEncoderConfig(dim=8, layers=1, ffn_dim=8, hop=16, n_fft=32)


@torch.inference_mode()
def test_spectral_encoder_is_causal_and_says_what_torch_stft_says():
    encoder = random_weights(SMALL, 0)[1].encoder
    audio = 0.1 * torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    whole = encoder(audio)
    assert whole.shape == (1, 16, 20)
    torch.testing.assert_close(encoder(audio[..., :1600]), whole[..., :10], atol=1e-4, rtol=1e-4)
    spectrum = torch.stft(audio[0], 640, 160, window=torch.hann_window(640), center=False, return_complex=True)
    expected = 0.25 * (spectrum.abs().square() + 1e-4).log()
    torch.testing.assert_close(encoder.log_magnitudes(audio)[..., 3:], expected, atol=1e-4, rtol=1e-4)


def test_spectra():
    bands = mel_bands(24, 512, 16_000)
    assert bands.shape == (24, 257)
    assert bands.amax(1).min() > 0.4
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(4000) / 16_000)[None]
    peak = log_mel(tone, bands=24, n_fft=512, sample_rate=16_000)[0, :, 10].argmax().item()
    assert bands[peak].argmax().item() * 16_000 / 512 == pytest.approx(1000, abs=100)
    assert reconstruction_loss(tone, tone, 16_000) == 0
    assert reconstruction_loss(0.5 * tone, tone, 16_000) > 0.1


def test_training_learns_and_goes_on_and_its_codec_encodes_the_corpus(work):
    options = {"steps": 8, "batch": 2, "threads": 1, "config": SMALL, "pause": Pause(None)}
    assert train_codec(work, minutes=0, **options) == 1
    assert train_codec(work, **options) == 8  # through every phase: open, quantized, judged
    codec = trained_codec(work, SMALL)
    folder = tokenize(work, pause=Pause(None), codec=codec)
    assert tokenize(work, pause=Pause(None), codec=codec) == folder
    spoken = open_tokens(work, "valid")
    corpus = open_corpus(work)
    assert [s.clip for s in spoken] == corpus.of("valid")
    audio = corpus.samples(spoken[1].clip)
    np.testing.assert_array_equal(spoken[1].codes, encode(codec, audio))
    assert codec.decode(torch.from_numpy(spoken[1].codes)[None]).shape[1] - SMALL.codec.lag >= audio.size


def test_a_corpus_that_has_grown_is_encoded_again(work):
    codec = random_weights(SMALL, 0)[1]
    tokenize(work, pause=Pause(None), codec=codec)
    manifest = work / "corpus" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"valid"', '"train"'))
    with pytest.raises(ReferenceEngineError, match="another corpus"):
        open_tokens(work, "train")
    tokenize(work, pause=Pause(None), codec=codec)
    assert [s.clip for s in open_tokens(work, "train")] == open_corpus(work).of("train")


def test_a_decoder_trained_on_leaves_the_codes_alone(work):
    options = {"batch": 2, "threads": 1, "config": SMALL, "pause": Pause(None)}
    train_codec(work, steps=4, **options)
    before = trained_codec(work, SMALL)
    folder = tokenize(work, pause=Pause(None), codec=before)
    written = (folder / "train.npz").stat().st_mtime_ns
    assert train_decoder(work, steps=4, minutes=0, **options) == 1
    with pytest.raises(ReferenceEngineError, match="is at step 1 of 4"):
        trained_codec(work, SMALL)
    assert train_decoder(work, **options) == 4  # the second half of it judged
    after = trained_codec(work, SMALL)
    for name, tensor in encoding(after).items():
        assert tensor.equal(before.state_dict()[name]), name
    assert not after.decoder.head.weight.equal(before.decoder.head.weight)
    tokenize(work, pause=Pause(None), codec=after)
    assert (folder / "train.npz").stat().st_mtime_ns == written
    (work / "codec" / "checkpoint.pt").unlink()
    train_codec(work, steps=2, seed=1, **options)
    with pytest.raises(ReferenceEngineError, match="belongs to another codec"):
        trained_codec(work, SMALL)


def test_a_packed_voices_codec_is_adopted_and_learns_on_with_more_blocks(work):
    before = replace(SMALL, codec=replace(SMALL.codec, lag=SMALL.codec.lag - 320))
    models = random_weights(before, 4)
    decoder = replace(SMALL.codec.decoder, layers=3)
    config = replace(SMALL, codec=replace(SMALL.codec, decoder=decoder))
    # A kernel that looks no further back than can be looked back further.
    models[1].decoder.first.conv.weight[:, :, :2] = 0
    save_weights(work / "voice.safetensors", before, *models)
    adopt(work, work / "voice.safetensors", config)
    codec = trained_codec(work, config)
    for name, tensor in encoding(codec).items():
        assert tensor.equal(models[1].state_dict()[name]), name
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (1, VOICE.language_model.codebooks, 30)))
    with torch.inference_mode():
        own, late = models[1].decode(codes), codec.decode(codes)
    skip = 6 * 640  # while there is nothing to look back at
    torch.testing.assert_close(late[:, skip + 320 :], own[:, skip:-320], atol=1e-5, rtol=1e-4)
    with pytest.raises(ReferenceEngineError, match="already"):
        adopt(work, work / "voice.safetensors", config)
    tokenize(work, pause=Pause(None), codec=codec)
    assert train_decoder(work, steps=2, batch=2, threads=1, config=config, pause=Pause(None)) == 2
    assert trained_codec(work, config).decoder.blocks[2].scale.abs().max() > 0, "the further blocks learn"
    (work / "codec" / "checkpoint.pt").unlink()
    far = replace(config, codec=replace(config.codec, lag=SMALL.codec.lag + 1_600))
    with pytest.raises(ReferenceEngineError, match="too far"):
        adopt(work, work / "voice.safetensors", far)


def test_a_voices_codec_learns_further_books_and_its_own_keep_their_codes(work):
    books = 4
    fewer = replace(
        SMALL,
        language_model=replace(SMALL.language_model, codebooks=books),
        codec=replace(SMALL.codec, quantizer=replace(SMALL.codec.quantizer, codebook_sizes=(16,) * books)),
    )
    models = random_weights(fewer, 4)
    voice = work / "voice.safetensors"
    save_weights(voice, fewer, *models)
    with pytest.raises(ReferenceEngineError, match="4 books only"):
        adopt(work, voice, SMALL)
    options = {"batch": 2, "threads": 1, "config": SMALL, "pause": Pause(None)}
    assert train_codec(work, steps=12, minutes=0, voice=voice, **options) == 1
    with pytest.raises(ReferenceEngineError, match="on from a voice"):
        train_codec(work, **options)
    assert train_codec(work, voice=voice, **options) == 12
    codec = trained_codec(work, SMALL)
    audio = open_corpus(work).samples(open_corpus(work).of("train")[0])
    codes = encode(codec, audio)
    np.testing.assert_array_equal(codes[:books], encode(models[1], audio))
    assert all(len(np.unique(row)) > 1 for row in codes[books:])
    for name, tensor in encoding(models[1]).items():
        assert tensor.equal(codec.state_dict()[name]), name
    assert not codec.decoder.head.weight.equal(models[1].decoder.head.weight)


def test_further_books_code_what_is_left(work):
    fewer = random_weights(SMALL, 4)[1]
    _begin_books(fewer, 3, open_corpus(work), seed=0)
    quantizer = fewer.quantizer
    audio = torch.from_numpy(open_corpus(work).samples(open_corpus(work).of("valid")[0])[:15_360])
    with torch.inference_mode():
        rest = quantizer.pre(quantizer.down(fewer.encoder(audio[None, None])))
        left = []
        for book in quantizer.books:
            rest = rest - book.decode(book.encode(rest))
            left.append(rest.square().mean().item())
    assert left[3] < 0.7 * left[2]
    assert left[5] < left[4] < left[3]


def test_the_loss_falls(work):
    task = CodecTask(SMALL, open_corpus(work), Schedule(steps=400, batch=2, seed=0))
    found = [task.step(step + 100, np.random.default_rng(0))["spectra"] for step in range(40)]
    assert found[-1] < 0.8 * found[0]


def test_batches_hold_sound(work):
    task = CodecTask(SMALL, open_corpus(work), Schedule(steps=400, batch=3, seed=0))
    rows = task._batch(task.clips, task.lengths, np.random.default_rng(0))
    assert rows.shape == (3, task.segment)
    assert (np.abs(rows).max(1) > 0.1).all()
