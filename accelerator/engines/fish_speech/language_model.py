"""The text2semantic model: its dimensions, its weights by the graphs' names, and its trace.

Forward passes are fish-speech's own; they run on replicas of the model that share its weights and have a
key-value cache of the size a request needs. Attention spans the whole cache there, so that a replica is an order of
magnitude faster than the engine's own 8192 slots, and the user's model is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import UnsupportedEngine
from ...export.graph.dual_ar import DualARSpec, TransformerSpec
from ...export.trace import Trace
from .structure import replica, shared, with_globals

__all__ = ["PROOF_TEXT", "prompt_of", "record", "spec_of", "state", "trace", "weight", "with_cache"]

PROOF_TEXT = "The quick brown fox jumps over the lazy dog."
PROOF_FRAMES = 64

_BLOCK_WEIGHTS = {
    "qkv": "attention.wqkv",
    "out": "attention.wo",
    "q_norm": "attention.q_norm",
    "k_norm": "attention.k_norm",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}
"""Name in the graphs -> name in a block of the model."""


def spec_of(model: Any, semantic_ids: Callable[[Any], tuple[int, int]], code_rows: int | None) -> DualARSpec:
    """The model's dimensions. semantic_ids, code_rows: of its `Layout`.

    Raises UnsupportedEngine for models which are not what the graphs compute.
    """
    config = model.config
    if type(model).__name__ != "DualARTransformer" or getattr(config, "is_reward_model", False):
        raise UnsupportedEngine(f"a {type(model).__name__} is not a text-to-speech model that can be accelerated")
    odd = {type(m).__name__ for m in _linears(model) if type(m) is not nn.Linear}
    if odd:
        raise UnsupportedEngine(
            f"the language model is quantized or adapted already ({', '.join(sorted(odd))}): "
            "load the checkpoint it was made from, the export quantizes by itself"
        )
    slow = TransformerSpec(
        dim=config.dim,
        layers=config.n_layer,
        heads=config.n_head,
        kv_heads=config.n_local_heads,
        head_dim=config.head_dim,
        ffn=config.intermediate_size,
        eps=config.norm_eps,
        rope_base=float(config.rope_base),
        positions=config.max_seq_len,
        qk_norm=config.attention_qk_norm,
        qkv_bias=config.attention_qkv_bias,
        out_bias=config.attention_o_bias,
        rope_bf16=True,
    )
    fast = TransformerSpec(
        dim=config.fast_dim,
        layers=config.n_fast_layer,
        heads=config.fast_n_head,
        kv_heads=config.fast_n_local_heads,
        head_dim=config.fast_head_dim,
        ffn=config.fast_intermediate_size,
        eps=config.norm_eps,
        rope_base=float(config.rope_base),
        positions=config.num_codebooks,
        qk_norm=config.fast_attention_qk_norm,
        qkv_bias=config.fast_attention_qkv_bias,
        out_bias=config.fast_attention_o_bias,
        rope_bf16=True,
    )
    begin, end = semantic_ids(model)
    return DualARSpec(
        slow=slow,
        fast=fast,
        codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        semantic_begin=int(begin),
        semantic_end=int(end),
        end_id=int(model.tokenizer.get_token_id("<|im_end|>")),
        fast_codes=min(config.codebook_size, code_rows or config.codebook_size),
        fast_input="post_norm" if getattr(config, "norm_fastlayer_input", False) else "pre_norm",
        scale_codebook_embeddings=config.scale_codebook_embeddings,
        fast_projection=config.fast_dim != config.dim,
    )


def _linears(model: Any) -> Iterator[nn.Module]:
    for block in (*model.layers, *model.fast_layers):
        yield from (block.attention.wqkv, block.attention.wo)
        yield from (block.feed_forward.w1, block.feed_forward.w2, block.feed_forward.w3)


def weight(model: Callable[[], Any], spec: DualARSpec, name: str) -> np.ndarray:
    """A weight by its name in the graphs, float32."""
    return np.asarray(_tensor(model(), spec, name).detach().float().contiguous().numpy())


def _tensor(model: Any, spec: DualARSpec, name: str) -> torch.Tensor:
    stack, _, rest = name.partition(".")
    if name == "slow.head":
        head = model.embeddings if model.config.tie_word_embeddings else model.output
        return head.weight[torch.from_numpy(spec.rows)]
    owner: Any
    if stack not in ("slow", "fast"):  # a table, or the projection between the two stacks
        owner = model.fast_project_in if stack == "fast_in" else getattr(model, stack)
    elif rest in ("norm", "head"):
        owner = {"slow.norm": "norm", "fast.norm": "fast_norm", "fast.head": "fast_output"}[name]
        owner, rest = getattr(model, owner), ""
    else:
        index, _, rest = rest.partition(".")
        kind, _, rest = rest.partition(".")
        blocks = model.layers if stack == "slow" else model.fast_layers
        owner = blocks[int(index)].get_submodule(_BLOCK_WEIGHTS[kind])
    return owner.bias if rest == "bias" else owner.weight


def state(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights by name, without its key-value caches."""
    return ((n, t) for n, t in model.state_dict().items() if ".kv_cache." not in n)


def with_cache(model: Any, positions: int) -> Any:
    """A replica of the model with its own key-value cache for `positions`, sharing the weights."""
    with torch.inference_mode(False):
        # A placeholder, so that the engine's large cache is not copied; setup_caches puts a new one there.
        replaced = [(m, nn.Identity()) for n, m in model.named_modules() if n.endswith("kv_cache")]
        replaced += [(each, each) for each in (model.config, model.tokenizer)]
        made = replica(model, shared, replaced=replaced)
        made.max_seq_len = made.max_batch_size = -1
        dtype = next(made.parameters()).dtype
        with torch.device("cpu"):
            made.setup_caches(max_batch_size=1, max_seq_len=positions, dtype=dtype)
            # Only as large as the cache: at 32,768 positions the engine's own mask has a gigabyte.
            slots = max(made.max_seq_len, model.config.num_codebooks)
            made.causal_mask = torch.tril(torch.ones(slots, slots, dtype=torch.bool))
        made._cache_setup_done = True
    return made


class _Prompt(Exception):
    """Carries the prompt out of generate_long."""


def prompt_of(module: Any, model: Any, text: str, turns: Sequence[tuple[torch.Tensor, str]] = ()) -> np.ndarray:
    """The prompt that fish-speech makes of a text, int64 [1 + C, T]. turns: what a voice said, as (codes, text).

    Raises what fish-speech raises for a prompt that is too long: a ValueError.
    """

    def caught(*, prompt: torch.Tensor, **_: Any) -> None:
        raise _Prompt(prompt.numpy().astype(np.int64))

    changes: dict[str, Any] = {"generate": caught}
    if "Conversation" in module.generate_long.__globals__:  # prints each prompt it builds
        base = module.generate_long.__globals__["Conversation"]
        changes["Conversation"] = type(base.__name__, (base,), {"visualize": lambda *_, **__: None})
    try:
        for _ in with_globals(module.generate_long, changes)(
            model=model,
            device="cpu",
            decode_one_token=None,
            text=text,
            prompt_text=[said for _, said in turns],
            prompt_tokens=[codes for codes, _ in turns],
        ):
            pass
    except _Prompt as prompt:
        return np.asarray(prompt.args[0])
    raise UnsupportedEngine("fish_speech's generate_long never called generate: this version is not supported")


def trace(model: Callable[[], Any], spec: DualARSpec, prompt: Callable[[], np.ndarray]) -> Trace:
    """What a proof compares with. prompt: of `PROOF_TEXT`."""
    return record(model(), spec, prompt(), PROOF_FRAMES)


def record(model: Any, spec: DualARSpec, prompt: np.ndarray, count: int) -> Trace:
    """Greedy frames, and the logits at each, by the model's own forward passes."""
    length = prompt.shape[1]
    count = min(count, spec.slow.positions - length)
    rows, codes, main, frames = torch.from_numpy(spec.rows), [], [], []
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        made = with_cache(model, length + count)
        x, position = torch.from_numpy(prompt)[None], torch.arange(length)
        for _ in range(count):
            answer = made.forward_generate(x, position)
            logits = answer.logits[0, -1, rows].float()
            main.append(logits.numpy())
            first = int(logits[:-1].argmax())  # the end would end the trace: the best code goes on
            frame = [spec.semantic_begin + first, first]
            made.forward_generate_fast(answer.hidden_states, torch.tensor([0]))
            for codebook in range(1, spec.codebooks):
                hidden = made.fast_embeddings(torch.tensor([frame[-1]]))
                fast = made.forward_generate_fast(hidden, torch.tensor([codebook]))[0, -1, : spec.fast_codes].float()
                codes.append(fast.numpy())
                frame.append(int(fast.argmax()))
            frames.append(np.array(frame, np.int64))
            x, position = torch.tensor(frame)[None, :, None], position[-1:] + 1
        caches = [layer.attention.kv_cache for layer in made.layers]
        keys, values = (
            np.stack([t[0].abs().amax(1).float().numpy() for t in ts])
            for ts in zip(*((cache.k_cache, cache.v_cache) for cache in caches), strict=True)
        )
    logits = np.stack(main), np.stack(codes).reshape(count, spec.codebooks - 1, -1)
    return Trace(prompt, np.stack(frames), *logits, keys, values)
