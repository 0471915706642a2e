"""What the double and the tiny checkpoint share: a tokenizer with Spark-TTS's own tokens, and a tiny Qwen2 that has
learnt the grammar of its replies, so that they end."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

__all__ = ["GLOBALS", "GLOBAL_IDS", "SEMANTIC_IDS", "language_model", "taught", "tokenizer"]

SEMANTIC_IDS, GLOBAL_IDS = 64, 16  # of the codebooks
GLOBALS = 4  # tokens of a voice
_TASKS = ("vc", "tts", "asr", "s2s", "t2s", "understand", "cap", "controllable_tts", "prompt_tts", "edit")
_FRAMES = ("content", "global_token", "semantic_token", "style_label", "acoustic_token")


def _names() -> list[str]:
    """Its own tokens, in the order of the real vocabulary: semantic, global, tasks, brackets, labels, values."""
    levels = range(5)
    return [
        *(f"<|bicodec_semantic_{i}|>" for i in range(SEMANTIC_IDS)),
        *(f"<|bicodec_global_{i}|>" for i in range(GLOBAL_IDS)),
        *(f"<|task_{task}|>" for task in _TASKS),
        *(f"<|{side}_{frame}|>" for frame in _FRAMES for side in ("start", "end")),
        *(f"<|gender_{i}|>" for i in range(2)),
        *(f"<|{what}_label_{i}|>" for what in ("pitch", "speed") for i in levels),
        *(f"<|pitch_value_{i}|>" for i in range(50)),
        *(f"<|speed_value_{i}|>" for i in range(11)),
    ]


def tokenizer() -> Any:
    """Bytes as letters, no merges, then the tokens with a name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in _names()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def language_model(tokens: Any, seed: int = 0) -> Any:
    """A tiny Qwen2 of random weights, its head tied to its embeddings as the real one's is."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=-(-len(tokens) // 16) * 16,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=tokens.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokens.convert_tokens_to_ids("<|im_end|>"),
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model: Any = transformers.Qwen2ForCausalLM(config)
    return model.eval()


def taught(model: Any, tokens: Any, steps: int = 120, seed: int = 0) -> Any:
    """The model after some seconds of training on prompts and replies of random content."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        pairs = [tuple(tokens(each).input_ids for each in _turn(chance)) for _ in range(8)]
        width = max(len(prompt) + len(reply) for prompt, reply in pairs)
        ids, labels, mask = (torch.full((8, width), fill) for fill in (0, -100, 0))
        for row, (prompt, reply) in enumerate(pairs):
            end = len(prompt) + len(reply)
            ids[row, :end], mask[row, :end] = torch.tensor(prompt + reply), 1
            labels[row, len(prompt) : end] = torch.tensor(reply)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _turn(chance: random.Random) -> tuple[str, str]:
    """(prompt, reply) of one of the three kinds of request. Speech counts upwards, to the last codes."""
    text = "".join(chance.choice("abcdefghijklmnop ,.") for _ in range(chance.randrange(5, 40)))
    voice = _codes("global", [chance.randrange(GLOBAL_IDS) for _ in range(GLOBALS)])
    before = [chance.randrange(40) for _ in range(chance.randrange(20, 120))]
    kind, code, speech = chance.randrange(3), before[-1], list[int]()
    while code < SEMANTIC_IDS - 2:
        code += chance.choice((1, 2))
        speech.append(code)
    spoken = _codes("semantic", speech) + "<|im_end|>"
    if kind == 2:
        labels = f"<|pitch_label_{chance.randrange(5)}|><|speed_label_{chance.randrange(5)}|>"
        style = f"<|gender_{chance.randrange(2)}|>{labels}"
        values = f"<|pitch_value_{chance.randrange(50)}|><|speed_value_{chance.randrange(11)}|>"
        return (
            f"<|task_controllable_tts|>{_within('content', text)}{_within('style_label', style)}",
            f"{_within('acoustic_token', values)}{_within('global_token', voice)}<|start_semantic_token|>{spoken}",
        )
    prompt = f"<|task_tts|>{_within('content', text)}{_within('global_token', voice)}"
    if kind == 0:
        return prompt, f"<|start_semantic_token|>{spoken}"
    return f"{prompt}<|start_semantic_token|>{_codes('semantic', before)}", spoken


def _within(frame: str, content: str) -> str:
    return f"<|start_{frame}|>{content}<|end_{frame}|>"


def _codes(kind: str, codes: list[int]) -> str:
    return "".join(f"<|bicodec_{kind}_{code}|>" for code in codes)
