"""The decoder written anew says what PyTorch's says, and speaks where it is fastest."""

import dataclasses

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.codec.convolutions import has_bf16
from accelerator.engines import vits
from accelerator.engines.vits import examples, stored
from accelerator.engines.vits.traceable import exportable
from accelerator.errors import SessionError
from accelerator.parts import vits_decoder
from accelerator.parts.vits_decoder.rewrite import DecodeCall
from tests.engines.vits.tiny import close

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
LONG = "The first sentence is here. And another one follows it, with a clause. " * 8


@pytest.mark.parametrize("length", [1, 31, 32, 33, 512, 513, 1300])
@pytest.mark.parametrize("speakers", [1, 3])
def test_the_rewritten_decoder_says_what_pytorch_says(engine, many, tmp_path, length, speakers):
    own = vits.VitsAdapter(engine if speakers == 1 else many)
    file = tmp_path / vits_decoder.FILE
    vits_decoder.save(stored.weights(lambda: exportable(own.model)), file)
    latents, speaker = examples.decoder_inputs(own.model, length)
    expected = own._decode_in_torch(latents, speaker)
    close(DecodeCall(file)(latents, speaker), expected)
    if has_bf16():
        rounded = DecodeCall(file, dtype="bf16")(latents, speaker)
        assert 1e-6 < np.abs(rounded - expected).max() < 0.03
    if speaker is not None:
        nobody = np.zeros_like(speaker)
        close(DecodeCall(file)(latents, nobody), own._decode_in_torch(latents, nobody))


def test_a_broken_rewrite_is_told_of(tmp_path):
    (tmp_path / vits_decoder.FILE).write_bytes(b"nothing")
    with pytest.raises(SessionError, match="cannot be read"):
        DecodeCall(tmp_path / vits_decoder.FILE)


def test_the_rewrite_speaks_where_it_is_fastest(engine, cache, monkeypatch):
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as plain:
        expected = plain.synthesize(LONG, seed=3).audio
    part = vits.VitsAdapter.parts

    def slow_elsewhere(self):
        text, decoder = part(self)
        seconds = iter(range(1, 100))

        def probe(call):
            call(*examples.decoder_inputs(self.model, 40))
            return 0.001 if isinstance(call, DecodeCall) else float(next(seconds))

        return text, dataclasses.replace(decoder, probe=probe)

    monkeypatch.setattr(vits.VitsAdapter, "parts", slow_elsewhere)
    with UniversalOptimizer(engine, cache_dir=cache, precision="fp32") as fast:
        speech = fast.synthesize(LONG, seed=3)
        assert speech.metrics["backends"]["decoder"] == "onednn"
        close(speech.audio, expected)
