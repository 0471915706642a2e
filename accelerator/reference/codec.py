"""The neural codec: waveform -> codes -> waveform, causal from end to end.

    encode: pad to whole frames -> encoder -> downsample -> pre -> residual VQ
            (encoder: DAC's strided convolutions and transformer, or log STFT and ConvNeXt)
    decode: residual VQ -> post -> upsample -> decoder
            (decoder: DAC's transposed convolutions, or Vocos: ConvNeXt and inverse STFT)

Parameters: quantizer.{down.{i}, pre, books.{i}, post, up.{i}}.*, encoder.{first, stages.{i}, transformer, last}.* (DAC)
or encoder.{first, norm, blocks.{i}, last_norm, last}.* (STFT), decoder.{first, stages.{i}, last}.* (DAC) or
decoder.{first, norm, blocks.{i}, last_norm, head}.* (inverse STFT).
books.{i} has codebook.weight [size, codebook_dim], project_in.* and project_out.*.

Sources: DAC (Kumar et al. 2023), EnCodec (Defossez et al. 2022) for causal streaming, Vocos (Siuzdak 2023).
B batch, n samples, T latent steps, m frames, C codebooks, L latent_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CodecConfig, DACDecoderConfig, EncoderConfig, ISTFTDecoderConfig, QuantizerConfig, STFTEncoderConfig
from .convolution import CausalConv, CausalConvTranspose, ConvNeXtBlock, ResidualUnit, Snake
from .transformer import WindowedTransformer, empty_embedding

__all__ = [
    "Codec",
    "CodecDecode",
    "CodecEncode",
    "DACDecoder",
    "ISTFTDecoder",
    "STFTEncoder",
    "inverse_stft_basis",
    "stft_basis",
]


class _Layer(Protocol):
    def reach(self, n: int) -> int: ...


class Encoder(nn.Module):
    """DAC encoder: [B, 1, n] -> [B, L, n / hop]."""

    def __init__(self, config: EncoderConfig, latent_dim: int) -> None:
        super().__init__()
        self.first = CausalConv(1, config.dim, 7)
        self.stages = nn.ModuleList()
        dim = config.dim
        for rate in config.rates:
            units = [ResidualUnit(dim, dilation) for dilation in (1, 3, 9)]
            self.stages.append(nn.Sequential(*units, Snake(dim), CausalConv(dim, 2 * dim, 2 * rate, stride=rate)))
            dim *= 2
        self.transformer = WindowedTransformer(config.transformer) if config.transformer else nn.Identity()
        self.last = nn.Sequential(Snake(dim), CausalConv(dim, latent_dim, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        return self.last(self.transformer(x))


def stft_basis(n_fft: int) -> Tensor:
    """The real DFT under a Hann window, as a matrix [n_fft, n_fft + 2]: columns of real, then of imaginary parts."""
    steps = torch.arange(n_fft, dtype=torch.float64, device="cpu")  # on the meta device it would load torch's compiler
    angles = 2 * math.pi / n_fft * torch.outer(steps, steps[: n_fft // 2 + 1])
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * steps / n_fft)
    return (torch.cat((angles.cos(), -angles.sin()), dim=1) * window[:, None]).float()


class STFTEncoder(nn.Module):
    """Vocos turned round: [B, 1, n] -> [B, L, n / hop]. The window of step t ends where the step ends."""

    def __init__(self, config: STFTEncoderConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.first = CausalConv(config.n_fft // 2 + 1, config.dim, 3)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config.dim, config.ffn_dim) for _ in range(config.layers))
        self.last_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.last = nn.Linear(config.dim, latent_dim)
        self.basis: Tensor
        self.register_buffer("basis", stft_basis(config.n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(self.log_magnitudes(x))

    def encode(self, x: Tensor) -> Tensor:
        """Log magnitudes [B, bins, T] -> [B, L, T]."""
        x = self.norm(self.first(x).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.last(self.last_norm(x.transpose(1, 2))).transpose(1, 2)

    def log_magnitudes(self, x: Tensor) -> Tensor:
        """[B, 1, n] -> [B, bins, n / hop], about -2 to 2."""
        hops = F.pad(x.squeeze(1), (3 * self.config.hop, 0)).unflatten(1, (-1, self.config.hop))  # [B, T + 3, hop]
        windows = torch.cat([hops[:, i : hops.shape[1] - 3 + i] for i in range(4)], dim=2)  # [B, T, n_fft]
        real, imaginary = (windows @ self.basis).chunk(2, dim=-1)
        power = real * real + imaginary * imaginary
        return (0.25 * (power + 1e-4).log()).transpose(1, 2)


class VectorQuantizer(nn.Module):
    """Factorised codebook: latents are looked up in a few dimensions, on the unit sphere."""

    def __init__(self, size: int, codebook_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.codebook = empty_embedding(size, codebook_dim)
        self.project_in = nn.Conv1d(latent_dim, codebook_dim, 1)
        self.project_out = nn.Conv1d(codebook_dim, latent_dim, 1)

    def encode(self, z: Tensor) -> Tensor:
        """Latents [B, L, T] -> codes [B, T]: the codebook row of highest cosine similarity."""
        keys = F.normalize(self.codebook.weight, dim=1)  # [size, d]
        return (self.project_in(z).transpose(1, 2) @ keys.T).argmax(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, T] -> latents [B, L, T]."""
        return self.project_out(self.codebook(codes).transpose(1, 2))


class Quantizer(nn.Module):
    """Residual vector quantizer at the frame rate: each codebook codes what the ones before it left over."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.sizes = config.codebook_sizes
        self.down = nn.Sequential(
            *(nn.Sequential(CausalConv(dim, dim, f, stride=f), ConvNeXtBlock(dim, 4 * dim)) for f in config.downsample)
        )
        self.pre = WindowedTransformer(config.transformer) if config.transformer else nn.Identity()
        self.books = nn.ModuleList(VectorQuantizer(size, config.codebook_dim, dim) for size in self.sizes)
        self.post = WindowedTransformer(config.transformer) if config.transformer else nn.Identity()
        self.up = nn.Sequential(
            *(
                nn.Sequential(CausalConvTranspose(dim, dim, f, overlap=1), ConvNeXtBlock(dim, 4 * dim))
                for f in reversed(config.downsample)
            )
        )

    def encode(self, x: Tensor) -> Tensor:
        """Latents [B, L, T] -> codes int64 [B, C, m]."""
        return self.quantize(self.pre(self.down(x)))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, C, m] -> latents [B, L, T]."""
        return self.up(self.post(self.dequantize(codes)))

    def quantize(self, z: Tensor) -> Tensor:
        """Frame-rate latents [B, L, m] -> codes [B, C, m]."""
        codes = []
        for book in cast(Iterable[VectorQuantizer], self.books):
            codes.append(book.encode(z))
            z = z - book.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes [B, C, m] -> frame-rate latents [B, L, m]. A code past the end of its codebook counts as the last one:
        the language model's codebooks are all as large as the largest."""
        rows = zip(cast(Iterable[VectorQuantizer], self.books), self.sizes, codes.unbind(1), strict=True)
        return torch.stack([book.decode(row.clamp(0, size - 1)) for book, size, row in rows]).sum(0)


class DACDecoder(nn.Module):
    """DAC decoder: [B, L, T] -> [B, 1, T * hop] within (-1, 1)."""

    def __init__(self, config: DACDecoderConfig, latent_dim: int) -> None:
        super().__init__()
        self.first = CausalConv(latent_dim, config.dim, 7)
        self.stages = nn.ModuleList()
        dim = config.dim
        for rate in config.rates:
            units = [ResidualUnit(dim // 2, dilation) for dilation in (1, 3, 9)]
            self.stages.append(nn.Sequential(Snake(dim), CausalConvTranspose(dim, dim // 2, rate), *units))
            dim //= 2
        self.last = nn.Sequential(Snake(dim), CausalConv(dim, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        return self.last(x).tanh()

    def reach(self, n: int) -> int:
        return _reach(
            [self.first, *(layer for stage in self.stages for layer in cast(nn.Sequential, stage)), *self.last], n
        )


def inverse_stft_basis(n_fft: int) -> Tensor:
    """The inverse real DFT under a Hann window, as a matrix [n_fft + 2, n_fft]: rows of real, then of imaginary parts.

    x[n] = 1/N sum_k w_k (Re_k cos(2 pi k n / N) - Im_k sin(2 pi k n / N)), w_k = 1 for k = 0 and N/2, else 2. Analysis
    with the same window is assumed; at four hops a window the squares add up to 3/2, which is divided out (Griffin and
    Lim 1984).
    """
    steps = torch.arange(n_fft, dtype=torch.float64, device="cpu")  # see stft_basis
    angles = 2 * math.pi / n_fft * torch.outer(steps[: n_fft // 2 + 1], steps)
    weights = torch.full((n_fft // 2 + 1, 1), 2.0, dtype=torch.float64, device="cpu")
    weights[0] = weights[-1] = 1.0
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * steps / n_fft)
    basis = torch.cat((weights * angles.cos(), -weights * angles.sin())) * window / (1.5 * n_fft)
    return basis.float()


class ISTFTDecoder(nn.Module):
    """Vocos decoder: [B, L, T] -> [B, 1, T * hop] within [-1, 1].

    The window of step t begins at sample t * hop, so that nothing looks ahead; the waveform therefore lags behind its
    latents by up to n_fft - hop samples, which training takes into account.
    """

    def __init__(self, config: ISTFTDecoderConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.first = CausalConv(latent_dim, config.dim, 7)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config.dim, config.ffn_dim) for _ in range(config.layers))
        self.last_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, config.n_fft + 2)
        self.basis: Tensor
        self.register_buffer("basis", inverse_stft_basis(config.n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.synthesize(x)

    def synthesize(self, x: Tensor) -> Tensor:
        """The last step's features [B, dim, T] -> [B, 1, T * hop]."""
        log_magnitude, phase = self.head(self.last_norm(x.transpose(1, 2))).chunk(2, dim=-1)  # [B, T, bins] each
        magnitude = log_magnitude.exp().clamp(max=100.0)
        spectrum = torch.cat((magnitude * phase.cos(), magnitude * phase.sin()), dim=-1)  # [B, T, n_fft + 2]
        return self._overlap_add(spectrum @ self.basis).clamp(-1.0, 1.0)

    def _overlap_add(self, windows: Tensor) -> Tensor:
        """[B, T, 4 hop] -> [B, 1, T * hop]: quarter i of a window falls i steps later."""
        quarters = windows.unflatten(-1, (4, self.config.hop)).unbind(2)  # 4 x [B, T, hop]
        total = quarters[0]
        for delay, quarter in enumerate(quarters[1:], start=1):
            total = total + F.pad(quarter, (0, 0, delay, 0))[:, : quarter.shape[1]]
        return total.flatten(1).unsqueeze(1)

    def reach(self, n: int) -> int:
        steps = -(-n // self.config.hop) + 3  # four windows overlap in a sample
        return _reach([self.first, *self.blocks], steps)


class Codec(nn.Module):
    """The whole codec. Batches are rows of equal length."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder | STFTEncoder
        if isinstance(config.encoder, EncoderConfig):
            self.encoder = Encoder(config.encoder, config.latent_dim)
        else:
            self.encoder = STFTEncoder(config.encoder, config.latent_dim)
        self.quantizer = Quantizer(config.quantizer, config.latent_dim)
        self.decoder: DACDecoder | ISTFTDecoder
        if isinstance(config.decoder, DACDecoderConfig):
            self.decoder = DACDecoder(config.decoder, config.latent_dim)
        else:
            self.decoder = ISTFTDecoder(config.decoder, config.latent_dim)

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.config.hop

    @property
    def receptive_field_frames(self) -> int:
        """Frames that one decoded frame depends on, itself included (an upper bound, from the layers' own)."""
        steps = self.decoder.reach(self.hop)
        return _reach(
            [self.quantizer.post, *(layer for stage in self.quantizer.up for layer in cast(nn.Sequential, stage))],
            steps,
        )

    def encode(self, audio: Tensor) -> Tensor:
        """Waveform [B, n] at the codec's rate -> codes int64 [B, C, ceil(n / hop)]; the end is padded with zeros."""
        frames = (audio.shape[1] + self.hop - 1) // self.hop
        whole = F.pad(audio, (0, frames * self.hop - audio.shape[1]))
        return self.quantizer.encode(self.encoder(whole.unsqueeze(1)))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, C, m] -> waveform [B, m * hop] in [-1, 1]."""
        return self.decoder(self.quantizer.decode(codes)).squeeze(1)


class CodecEncode(nn.Module):
    """`Codec.encode` as a module, for exporters: [B, n] -> [B, C, m].

    For `torch.export` both axes are `Dim.DYNAMIC`; the example should be several frames long.
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, audio: Tensor) -> Tensor:
        return self.codec.encode(audio)


class CodecDecode(nn.Module):
    """`Codec.decode` as a module, for exporters: [B, C, m] -> [B, m * hop]."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, codes: Tensor) -> Tensor:
        return self.codec.decode(codes)


def _reach(layers: Iterable[nn.Module], n: int) -> int:
    for layer in reversed(list(layers)):
        n = n if isinstance(layer, nn.Identity) else cast(_Layer, layer).reach(n)
    return n
