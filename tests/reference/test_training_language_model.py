from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accelerator.reference import ReferenceEngineError
from accelerator.reference.engine import ReferenceEngine
from accelerator.reference.training.corpus import Clip
from accelerator.reference.training.language_model import LanguageModelTask, Rows, losses, pack_rows, turn
from accelerator.reference.training.loop import Schedule
from accelerator.reference.training.pack import halved
from accelerator.reference.training.tokens import Spoken
from accelerator.reference.training.voice import SPEAKER_TOKENS, VOICE
from accelerator.reference.weights import build, load_weights, random_weights, save_weights

LM = VOICE.language_model
SMALL = replace(
    VOICE,
    language_model=replace(
        LM,
        slow=replace(LM.slow, dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn_dim=32),
        fast=replace(LM.fast, dim=32, heads=2, kv_heads=1, head_dim=16, ffn_dim=32),
    ),
)


def spoken(count: int) -> list[Spoken]:
    random = np.random.default_rng(0)
    return [
        Spoken(
            Clip(f"{i}", "word", "train", ("slt", "rms")[i % 2], f"word {i}.", 1, ""),
            random.integers(0, 512, (6, 40 + i)),
        )
        for i in range(count)
    ]


@torch.inference_mode()
def test_teacher_forcing_asks_what_the_engine_answers():
    """The losses of a document are those of stepwise generation with the engine's caches."""
    model = random_weights(SMALL, 0)[0]
    config = SMALL.language_model
    first = spoken(1)[0]
    columns = torch.from_numpy(turn(first.clip.text, first.codes, config, "slt"))[None]
    length = columns.shape[2]
    start = length - 42  # the column of `voice`
    cache, fast_cache = model.slow_cache(length), model.fast_cache()
    semantic, codes = [], []
    for step in range(start, length - 1):
        part = columns[:, :, : step + 1] if step == start else columns[:, :, step : step + 1]
        logits, hidden = model.slow(part, cache, 0 if step == start else step)
        following = columns[0, :, step + 1]
        wanted = torch.where(following[0] == config.im_end, 512, following[0] - config.semantic_begin)
        semantic.append(F.cross_entropy(logits, wanted[None]))
        if following[0] == config.im_end:
            continue
        x = torch.cat((hidden[:, None], model.fast_embeddings(following[None, 1:2])), dim=1)
        for book in range(1, 6):
            codes.append(
                F.cross_entropy(model.fast(x, fast_cache, 0 if book == 1 else book), following[None, 1 + book])
            )
            x = model.fast_embeddings(following[None, 1 + book : 2 + book])
    assert len(semantic) == 41
    target = torch.full((1, length), -100)
    tokens = columns[0, 0]
    target[0, start:-1] = torch.where(
        tokens[start + 1 :] == config.im_end, 512, tokens[start + 1 :] - config.semantic_begin
    )
    found = losses(model, Rows(columns, torch.ones(1, length, dtype=torch.int64), target))
    torch.testing.assert_close(found["semantic"], torch.stack(semantic).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["codes"], torch.stack(codes).mean(), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_documents_of_a_row_do_not_see_each_other():
    model = random_weights(SMALL, 0)[0]
    rows = pack_rows(spoken(6), SMALL.language_model, 1, np.random.default_rng(0))
    assert rows.document.max() >= 3
    second = rows.document[0] == 2
    alone = Rows(rows.columns[:, :, second], rows.document[:, second], rows.target[:, second])
    others = torch.where(second, rows.target, -100)
    for name, value in losses(model, alone).items():
        torch.testing.assert_close(losses(model, replace(rows, target=others))[name], value, atol=1e-4, rtol=1e-4)


def test_rows_teach_frames_and_ends_of_every_turn():
    config = SMALL.language_model
    rows = pack_rows(spoken(6), config, 3, np.random.default_rng(1))
    tokens = rows.columns[:, 0]
    assert (rows.target == 512).sum() == (tokens == config.im_end).sum()
    frames = (tokens >= config.semantic_begin) & (rows.document > 0)
    assert (rows.target >= 0).sum() == frames.sum() + (tokens == config.im_end).sum()
    named = torch.isin(tokens, torch.tensor(list(SPEAKER_TOKENS.values())))
    assert 0 < named.sum() < (tokens == config.im_start).sum()  # some by name, some by reference


def test_the_loss_falls():
    task = LanguageModelTask(SMALL, spoken(2), spoken(2), Schedule(steps=2000, batch=1, seed=0))
    found = [sum(list(task.step(s + 190, np.random.default_rng(0)).values())[:2]) for s in range(40)]
    assert found[0] == pytest.approx(2 * np.log(512), rel=0.1)
    assert found[-1] < 0.97 * found[0]
    assert set(task.validate()) == {"semantic", "codes"}


def test_a_packed_voice_is_an_engine_that_speaks_by_name(tmp_path):
    language_model, codec = random_weights(SMALL, 0)
    path = tmp_path / "voice.safetensors"
    save_weights(path, SMALL, halved(language_model), halved(codec))
    engine = ReferenceEngine(*load_weights(path))
    torch.testing.assert_close(engine.language_model.norm.weight, language_model.norm.weight, atol=1e-3, rtol=1e-3)
    assert engine.speakers == ("slt", "rms", "awb")
    prompt = engine.encode_text("Dr. Who", speaker="rms")
    assert prompt[0].tolist() == [256, 260, *b"doctor who.", 258]
    audio, _ = engine.synthesize("Hello there", speaker="rms", seed=0, max_new_tokens=4)
    assert audio.size == 4 * 640 - 480
    language_model.norm.weight[0] = 1e6
    with pytest.raises(ReferenceEngineError, match="float16"):
        halved(language_model)


def test_the_voice_fits_its_budget():
    assert 2 * sum(p.numel() for module in build(VOICE) for p in module.parameters()) < 15_970_000
