"""Training the codec: spectral reconstruction through the residual quantizer, then a discriminator's opinion.

    audio -> encoder -> quantizer (straight through) -> decoder -> audio, `lag` samples late

`train_decoder` then goes on with what lies behind the codes alone: encoder and quantizer stay as they are, and so do
the corpus's codes and a language model that has learnt them.

The decoder's windows reach `n_fft - hop` samples ahead of the latents that shape them, and both halves are causal. So
the decoder is trained to say what the encoder heard that many samples before, which is the configuration's `lag`:
nothing has to be guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import Codec, ISTFTDecoder, STFTEncoder, VectorQuantizer
from ..config import EngineConfig
from ..convolution import ConvNeXtBlock
from ..errors import ReferenceEngineError
from ..spectra import SCALES, reconstruction_loss
from ..weights import load_weights, random_weights
from .corpus import Corpus, open_corpus
from .discriminator import SpectralDiscriminator, discriminator_loss, generator_losses
from .loop import Average, Checkpoint, Schedule, cosine, run
from .quantizer import Quantized, Usage, quantize
from .voice import VOICE

__all__ = ["CodecTask", "adopt", "encoding", "grown", "train_codec", "train_decoder", "trained_codec"]

STEPS, DECODER_STEPS, BATCH = 6_000, 6_000, 8
SEGMENT_FRAMES = 32  # 1.28 s
_OPEN = 0.03  # share of the steps that pass the quantizer by, so that codebooks begin with latents worth coding
_JUDGED, _DECODER_JUDGED = 0.9, 0.5  # share of the steps after which the discriminator takes part
_RESTARTED = 0.8  # share of the steps in which dead codes are restarted; then all settle
_PEAK = 1e-3
_ENCODING = ("encoder.", "quantizer.down.", "quantizer.pre.", "quantizer.books.")
_JUDGE_RATE = 5e-4  # constant: the discriminator starts when the codec's own rate is nearly over
_LOOKED_AT, _CLUSTERED = 400, 10  # clips that further books begin with, and rounds of k-means
_HEARD = 3  # resolutions of the spectral loss a step: drawn anew each time, the mean is that of all


def train_codec(
    work: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 2,
    config: EngineConfig = VOICE,
    voice: Path | None = None,
    **options: Any,
) -> int:
    """Train, or go on; the step reached. `options` are those of `loop.run`.

    voice: a packed voice with fewer books than `config` asks for. Its encoder and its books stay as they are, and so
    do their codes; the further books and the decoder learn, unjudged: `train_decoder` follows.
    """
    torch.set_num_threads(threads)
    folder = work / "codec"
    schedule = Checkpoint(folder / "checkpoint.pt").continued(
        steps, batch, Schedule(steps=STEPS, batch=BATCH, seed=seed, further=voice is not None)
    )
    if schedule.further != (voice is not None):
        raise ReferenceEngineError(f"{folder} has learnt {'on from a voice' if schedule.further else 'from nothing'}")
    task = CodecTask(config, open_corpus(work), schedule, device=device, voice=voice)
    return run(task, folder, schedule, **options)


def train_decoder(
    work: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 2,
    config: EngineConfig = VOICE,
    unfinished: bool = False,
    **options: Any,
) -> int:
    """As `train_codec`, of the decoder behind the codes that the trained codec gives."""
    torch.set_num_threads(threads)
    folder = work / "decoder"
    schedule = Checkpoint(folder / "checkpoint.pt").continued(
        steps, batch, Schedule(steps=DECODER_STEPS, batch=BATCH, seed=seed)
    )
    state = Checkpoint(work / "codec" / "checkpoint.pt").averaged(unfinished=unfinished)
    task = CodecTask(config, open_corpus(work), schedule, device=device, encoder=state)
    return run(task, folder, schedule, **options)


def trained_codec(work: Path, config: EngineConfig = VOICE, *, unfinished: bool = False) -> Codec:
    """The averaged weights, frozen; with the decoder of `train_decoder`, if there is one.

    Raises ReferenceEngineError before a schedule's end, unless `unfinished`.
    """
    codec = random_weights(config, 0)[1]
    state = Checkpoint(work / "codec" / "checkpoint.pt").averaged(unfinished=unfinished)
    later = Checkpoint(work / "decoder" / "checkpoint.pt")
    codec.load_state_dict(later.averaged(unfinished=unfinished) if later.path.is_file() else state)
    if not all(tensor.equal(state[name]) for name, tensor in encoding(codec).items()):
        raise ReferenceEngineError(f"{later.path} belongs to another codec: train the decoder again")
    return codec


def adopt(work: Path, voice: Path, config: EngineConfig = VOICE) -> Path:
    """Take a packed voice's codec for the trained one, and answer the checkpoint.

    What comes before its codes stays; see `grown` for what may differ. Raises ReferenceEngineError where anything else
    does, or if there is a trained codec.
    """
    path = work / "codec" / "checkpoint.pt"
    if path.is_file():
        raise ReferenceEngineError(f"there is {path} already")
    codec, books = grown(voice, config)
    if books < len(codec.quantizer.books):
        raise ReferenceEngineError(f"{voice} has {books} books only: the others are learnt by `codec`, begun with it")
    return Checkpoint(path).adopt(codec)


def grown(voice: Path, config: EngineConfig) -> tuple[Codec, int]:
    """A packed voice's codec, to be trained on, and how many books it came with.

    Its decoder may have fewer blocks than `config` asks for: further ones begin as none. It may lag less, by a few
    hops: the first layer then looks further back, as far as its kernel reaches. It may have fewer books: further ones
    are random. Raises ReferenceEngineError where anything else differs.
    """
    own = load_weights(voice)[2]
    codec = random_weights(config, 0)[1]
    state, blocks = own.state_dict(), "decoder.blocks."
    books = len(own.quantizer.books)
    further = tuple(f"quantizer.books.{i}." for i in range(books, len(codec.quantizer.books)))
    later, rest = divmod(config.codec.lag - own.config.lag, config.codec.decoder.hop)
    kernel = state["decoder.first.conv.weight"]
    if rest or not 0 <= later < kernel.shape[2]:
        raise ReferenceEngineError(f"{voice} lags {own.config.lag} samples, from which {config.codec.lag} is too far")
    state["decoder.first.conv.weight"] = F.pad(kernel[:, :, later:], (0, later))
    for name, tensor in codec.state_dict().items():
        if name.startswith(further):
            state[name] = tensor
        elif name.startswith(blocks) and name not in state:
            state[name] = torch.zeros_like(tensor) if name.endswith(".scale") else tensor
    try:
        codec.load_state_dict(state)
    except RuntimeError as error:
        raise ReferenceEngineError(f"{voice} has another codec than the one to train: {error}") from error
    return codec, books


def encoding(codec: Codec) -> dict[str, Tensor]:
    """The weights that decide which codes a sound gets."""
    return {name: tensor for name, tensor in codec.state_dict().items() if name.startswith(_ENCODING)}


class CodecTask:
    """See `loop.Task`."""

    def __init__(
        self,
        config: EngineConfig,
        corpus: Corpus,
        schedule: Schedule,
        *,
        device: str = "cpu",
        encoder: dict[str, Tensor] | None = None,
        voice: Path | None = None,
    ) -> None:
        """encoder: a trained codec's weights, of which only the decoder's are to change. voice: see `train_codec`."""
        self.corpus, self.schedule, self.device = corpus, schedule, device
        self.segment = SEGMENT_FRAMES * config.codec.hop
        self.lag = config.codec.lag
        self.codec = _prepared(config, schedule.seed)
        self.frozen, self.further = encoder is not None, voice is not None
        self.first = 0  # of the books that learn
        if encoder is not None:
            self.codec.load_state_dict(encoder)
            self.first = len(self.codec.quantizer.books)
        elif voice is not None:
            own, self.first = grown(voice, config)
            _begin_books(own, self.first, corpus, schedule.seed)
            self.codec.load_state_dict(own.state_dict())
        self.codec.to(device)
        if encoder is not None or voice is not None:
            books = tuple(f"quantizer.books.{i}." for i in range(self.first, len(self.codec.quantizer.books)))
            for name, parameter in self.codec.named_parameters():
                parameter.requires_grad_(name.startswith(books) or not name.startswith(_ENCODING))
        learning = [p for p in self.codec.parameters() if p.requires_grad]
        torch.manual_seed(schedule.seed)
        self.judge = SpectralDiscriminator().to(device)
        self.usage = Usage(config.codec.quantizer.codebook_sizes[self.first :], begun=self.further).to(device)
        self.modules: dict[str, nn.Module] = {"codec": self.codec, "judge": self.judge, "usage": self.usage}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "codec": torch.optim.AdamW(learning, lr=_PEAK, betas=(0.8, 0.98), weight_decay=1e-3, fused=True),
            "judge": torch.optim.AdamW(
                self.judge.parameters(), lr=_PEAK, betas=(0.8, 0.98), weight_decay=1e-3, fused=True
            ),
        }
        self.average: Average | None = Average(self.codec, 0.999)
        self.clips = [clip for clip in corpus.of("train") if clip.samples > self.segment // 2]
        self.lengths = np.array([clip.samples for clip in self.clips], dtype=np.float64)

    def step(self, step: int, random: np.random.Generator) -> dict[str, float]:
        audio = torch.from_numpy(self._batch(self.clips, self.lengths, random)).to(self.device)
        rate = cosine(step, self.schedule.steps, peak=_PEAK)
        opened = not (self.frozen or self.further) and step < _OPEN * self.schedule.steps
        judged = not self.further and step >= (_DECODER_JUDGED if self.frozen else _JUDGED) * self.schedule.steps
        with self._half():
            decoded, quantized = self._through(audio, opened)
        heard, said = audio[:, : audio.shape[1] - self.lag], decoded[:, self.lag :].float()
        scales = random.choice(len(SCALES), _HEARD, replace=False).tolist()
        losses = {"spectra": reconstruction_loss(said, heard, VOICE.codec.sample_rate, scales)}
        total = 10 * losses["spectra"] + 0.25 * quantized.commitment + quantized.codebook
        losses |= {"commitment": quantized.commitment}
        if judged:
            length = heard.shape[1] // 2  # as good a judgement at half the price
            begin = int(random.integers(0, heard.shape[1] - length))
            real, fake = heard[:, begin : begin + length], said[:, begin : begin + length]
            losses["judge"] = self._judge_step(real, fake.detach())
            with self._half():
                adversarial, matching = generator_losses(self.judge(real), self.judge(fake))
            total = total + adversarial + 2 * matching
            losses |= {"adversarial": adversarial, "matching": matching}
        norm = _update(self.optimizers["codec"], self.codec, total, rate)
        if not opened and not self.frozen:
            books = cast(Iterable[VectorQuantizer], self.codec.quantizer.books[self.first :])
            used = replace(quantized, codes=quantized.codes[self.first :], inputs=quantized.inputs[self.first :])
            self.usage.update(used, books, restart=step < _RESTARTED * self.schedule.steps)
        cast(Average, self.average).update(self.codec)
        return {**{name: loss.item() for name, loss in losses.items()}, "gradient": norm, **self.usage.report()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        clips = [clip for clip in self.corpus.of("valid") if clip.samples > self.segment // 2]
        random = np.random.default_rng(0)
        lengths = np.array([clip.samples for clip in clips], dtype=np.float64)
        total, rounds = 0.0, 3
        with torch.device(self.device), cast(Average, self.average).applied(self.codec):
            for _ in range(rounds):
                audio = torch.from_numpy(self._batch(clips, lengths, random)).to(self.device)
                said = self.codec.decode(self.codec.encode(audio))[:, self.lag :]
                total += reconstruction_loss(said, audio[:, : said.shape[1]], VOICE.codec.sample_rate).item()
        return {"spectra": total / rounds}

    def _through(self, audio: Tensor, opened: bool) -> tuple[Tensor, Quantized]:
        quantizer = self.codec.quantizer
        latents = quantizer.pre(quantizer.down(_with_exact_spectrum(self.codec.encoder, audio.unsqueeze(1))))
        with torch.autocast(self.device, enabled=False):
            quantized = quantize(cast(Iterable[VectorQuantizer], quantizer.books), latents.float(), opened)
        raised = quantizer.up(quantizer.post(quantized.latents))
        decoder = self.codec.decoder
        decoded = _with_exact_head(decoder, raised) if isinstance(decoder, ISTFTDecoder) else decoder(raised)
        return decoded.squeeze(1), quantized

    def _judge_step(self, heard: Tensor, said: Tensor) -> Tensor:
        with self._half():
            loss = discriminator_loss(self.judge(heard), self.judge(said))
        _update(self.optimizers["judge"], self.judge, loss, _JUDGE_RATE)
        return loss

    @contextmanager
    def _half(self) -> Iterator[None]:
        with torch.device(self.device), torch.autocast(self.device, dtype=torch.bfloat16):
            yield

    def _batch(self, clips: list[Any], lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Float32 [B, segment]: clips by their length, cut anywhere, at levels around their own."""
        rows = np.zeros((self.schedule.batch, self.segment), dtype=np.float32)
        for row, index in zip(
            rows, random.choice(len(clips), self.schedule.batch, p=lengths / lengths.sum()), strict=True
        ):
            samples = self.corpus.samples(clips[index])
            start = int(random.integers(-self.segment // 4, max(1, samples.size - self.segment // 2)))
            piece = samples[max(0, start) : start + self.segment]
            row[max(0, -start) : max(0, -start) + piece.size] = piece
            row *= 10 ** random.uniform(-0.15, 0.05)
        return rows


def _with_exact_spectrum(encoder: nn.Module, x: Tensor) -> Tensor:
    """The encoder on its exact spectrum: it is worked out in float32, without gradients."""
    if not isinstance(encoder, STFTEncoder):
        return encoder(x)
    with torch.autocast(x.device.type, enabled=False), torch.no_grad():
        magnitudes = encoder.log_magnitudes(x)
    return encoder.encode(magnitudes)


def _with_exact_head(decoder: ISTFTDecoder, x: Tensor) -> Tensor:
    """`ISTFTDecoder.forward` with phases and the transform in float32: eight bits of mantissa would be heard."""
    x = decoder.norm(decoder.first(x).transpose(1, 2)).transpose(1, 2)
    for block in decoder.blocks:
        x = block(x)
    with torch.autocast(x.device.type, enabled=False):
        return decoder.synthesize(x.float())


def _prepared(config: EngineConfig, seed: int) -> Codec:
    """Random weights from which training goes well: small residual branches, books that begin as projections."""
    codec = random_weights(config, seed)[1]
    generator = torch.Generator().manual_seed(seed)
    for module in codec.modules():
        if isinstance(module, ConvNeXtBlock):
            module.scale.data.fill_(0.2)
        elif isinstance(module, VectorQuantizer):
            size, dim = module.project_in.weight.shape[:2]
            rows = torch.linalg.qr(torch.randn(dim, size, generator=generator))[0].T  # [d, L], orthonormal
            module.project_in.weight.data.copy_(rows[:, :, None])
            module.project_out.weight.data.copy_(rows.T[:, :, None])
            for bias in (module.project_in.bias, module.project_out.bias):
                cast(Tensor, bias).data.zero_()
    return codec.requires_grad_(True).train()


@torch.no_grad()
def _begin_books(codec: Codec, first: int, corpus: Corpus, seed: int) -> None:
    """Books from `first` on, each from what those before it leave over of some clips: principal components as
    projections, means of clusters as codes.

    One dimension is as long for every latent. So the cosine that finds a code tells large ones from small ones, too.
    """
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    clips, quantizer = corpus.of("train"), codec.quantizer
    parts = []
    for index in random.choice(len(clips), min(_LOOKED_AT, len(clips)), replace=False):
        audio = torch.from_numpy(corpus.samples(clips[index]))[None, None]
        whole = F.pad(audio, (0, -audio.shape[2] % codec.hop))
        parts.append(quantizer.pre(quantizer.down(codec.encoder(whole))))
    rest = torch.cat(parts, dim=2)  # [1, L, frames]
    for index, book in enumerate(cast(Iterable[VectorQuantizer], quantizer.books)):
        if index >= first:
            mean = rest.mean((0, 2))  # [L]
            dim = book.codebook.weight.shape[1] - 1
            rows = torch.linalg.svd(rest[0].T - mean, full_matrices=False)[2][:dim]  # [dim, L]
            length = (rows @ (rest[0] - mean[:, None])).square().sum(0).mean().sqrt()
            book.project_in.weight.data.copy_(F.pad(rows, (0, 0, 0, 1))[:, :, None])
            cast(Tensor, book.project_in.bias).data.copy_(torch.cat((-rows @ mean, length[None])))
            book.project_out.weight.data.copy_(F.pad(rows.T, (0, 1))[:, :, None])
            cast(Tensor, book.project_out.bias).data.copy_(mean)
            low = book.project_in(rest)[0].T  # [frames, dim + 1]
            codes = book.codebook.weight
            codes.copy_(low[torch.randint(len(low), (len(codes),), generator=generator)])
            for _ in range(_CLUSTERED):
                nearest = book.encode(rest)[0]
                sums = torch.zeros_like(codes).index_add_(0, nearest, low)
                counts = torch.bincount(nearest, minlength=len(codes))[:, None]
                codes.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), codes))
        rest = rest - book.decode(book.encode(rest))


def _update(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor, rate: float) -> float:
    """One step of the optimizer; the gradient's norm before it was clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 5.0).item()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm
