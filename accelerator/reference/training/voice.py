"""The configuration of the bundled voice: the size "small", cut for 16 kHz, 25 frames a second and 16 MB."""

from __future__ import annotations

from ..config import (
    CodecConfig,
    EngineConfig,
    ISTFTDecoderConfig,
    LanguageModelConfig,
    QuantizerConfig,
    STFTEncoderConfig,
    TransformerConfig,
)

__all__ = ["SPEAKER_TOKENS", "VOICE"]

VOICE = EngineConfig(
    name="small",
    language_model=LanguageModelConfig(
        slow=TransformerConfig(
            dim=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffn_dim=448, qk_norm=True, rope_base=1e5
        ),
        fast=TransformerConfig(dim=256, layers=1, heads=4, kv_heads=2, head_dim=64, ffn_dim=512, rope_base=1e5),
        vocab_size=776,
        codebooks=6,
        codebook_size=512,
        im_start=256,
        im_end=257,
        voice=258,
        semantic_begin=264,
        max_seq_len=4096,
        tie_output=True,
    ),
    codec=CodecConfig(
        sample_rate=16_000,
        latent_dim=128,
        encoder=STFTEncoderConfig(dim=128, layers=3, ffn_dim=384, hop=160, n_fft=640),
        quantizer=QuantizerConfig(
            codebook_sizes=(512,) * 6,
            codebook_dim=8,
            downsample=(2, 2),
            transformer=TransformerConfig(dim=128, layers=1, heads=4, kv_heads=4, head_dim=32, ffn_dim=256, window=16),
        ),
        decoder=ISTFTDecoderConfig(dim=192, layers=5, ffn_dim=576, hop=160, n_fft=640),
    ),
    max_new_tokens=512,
)

SPEAKER_TOKENS = {"slt": 259, "rms": 260, "awb": 261}
"""A turn of a speaker chosen by name has this token right behind `im_start`."""
