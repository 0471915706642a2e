"""Causal language models of transformers, tiny and random, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from accelerator.export.graph.specs import CausalSpec
from accelerator.inference.batcher import CausalDecoder
from accelerator.inference.compiled import open_graphs
from accelerator.inference.token_sampling import TokenSampler
from accelerator.inference.transformer import TokenEmbeddings
from accelerator.parts.llama import weight
from accelerator.runtime.onnx import Session
from accelerator.speech import SamplingParams

__all__ = ["END", "SIZES", "VOCABULARY", "decoder_of", "drawn", "made", "of_transformers", "prompt_of", "sampler"]

VOCABULARY, END = 320, (318, 319)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}


def made(kind: str) -> Any:
    """A random model with weights so large that what it says varies; a tied head asks for the largest."""
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    torch.manual_seed(7)
    if kind == "qwen2":  # biases, a tied head
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, tie_word_embeddings=True))
    elif kind == "qwen3":  # norms of queries and keys
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=32))
    else:  # neither; all heads have keys of their own
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 4}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                parameter *= 5 if kind == "qwen2" and "embed" not in name else 4
    return model.eval()


def prompt_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY - 2, length)


def decoder_of(model: Any, spec: CausalSpec, directory: Path, compiled: int = 0, **how: Any) -> CausalDecoder:
    """compiled: threads of compiled kernels; 0 is ONNX Runtime."""
    graph = open_graphs(directory, spec, ["causal"], compiled)[0] if compiled else Session(directory / "causal.onnx")
    return CausalDecoder(spec, graph, TokenEmbeddings(weight(model, "embeddings")), **how)


def sampler(spec: CausalSpec, temperature: float = 0.0, **how: Any) -> TokenSampler:
    return TokenSampler(SamplingParams(**{"temperature": temperature, "top_p": 1.0, **how}), spec.rows)


def drawn(decoder: CausalDecoder, prompt: np.ndarray, count: int, temperature: float = 0.0, **how: Any) -> list[int]:
    sampling = sampler(decoder.spec, temperature, seed=how.pop("seed", 0))
    return list(decoder.generate(prompt, sampling, count, **how))


def of_transformers(model: Any, prompt: np.ndarray, count: int, ends: Sequence[int] = ()) -> list[int]:
    ids = torch.from_numpy(prompt)[None]
    how = {"do_sample": False, "eos_token_id": list(ends) or None, "pad_token_id": 0}
    with torch.inference_mode():
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **how)
    return [int(token) for token in answer[0, len(prompt) :]]
