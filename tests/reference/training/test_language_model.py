from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accelerator.reference import ReferenceEngineError
from accelerator.reference.engine import ReferenceEngine
from accelerator.reference.pronounce import pronounced
from accelerator.reference.training.corpus import Clip
from accelerator.reference.training.language_model import (
    LanguageModelTask,
    Rows,
    grown,
    losses,
    noisy,
    pace,
    pack_rows,
    reader,
    turn,
)
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
            random.integers(0, 512, (LM.codebooks, 40 + i)),
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
        for book in range(1, config.codebooks):
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
    no_guide = torch.zeros(1, 2, length)
    found = losses(model, Rows(columns, torch.ones(1, length, dtype=torch.int64), target, no_guide))
    assert found["guide"] == 0
    torch.testing.assert_close(found["semantic"], torch.stack(semantic).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["codes"], torch.stack(codes).mean(), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_documents_of_a_row_do_not_see_each_other():
    model = random_weights(SMALL, 0)[0]
    rows = pack_rows(spoken(6), SMALL.language_model, 1, np.random.default_rng(0))
    assert rows.document.max() >= 3
    second = rows.document[0] == 2
    first = second.nonzero().min()
    letter = rows.letter[:, :, second].clone()
    letter -= first * (letter[:, 1:] > 0)  # columns of the row -> of the document
    alone = Rows(rows.columns[:, :, second], rows.document[:, second], rows.target[:, second], letter)
    only = replace(rows, target=torch.where(second, rows.target, -100), letter=torch.where(second, rows.letter, 0.0))
    for name, value in losses(model, alone).items():
        torch.testing.assert_close(losses(model, only)[name], value, atol=1e-4, rtol=1e-4)
    assert value > 0.5  # the guide: of random weights little attention lies near the diagonal


def test_the_guide_goes_along_the_text_from_its_first_letter_to_its_last():
    config = SMALL.language_model
    rows = pack_rows(spoken(6), config, 2, np.random.default_rng(3))
    tokens, (centre, end) = rows.columns[0, 0], rows.letter[0]
    asking = (rows.target[0] >= 0).nonzero().flatten()
    assert (end > 0).nonzero().flatten().tolist() == asking.tolist()
    voice = next(c for c in asking.tolist() if tokens[c] == config.voice)
    text = [c for c in range(voice) if tokens[c] < 256 and rows.document[0, c] == rows.document[0, voice]]
    turn_end = next(c for c in range(voice, 512) if tokens[c] == config.im_end)
    assert text[-1] + 1 == voice == end[voice]
    assert text[0] <= centre[voice] < text[0] + 1
    assert text[-1] < centre[turn_end - 1] <= voice
    assert (centre[voice:turn_end].diff() >= 0).all()  # none yet while it is silent


def test_noise_hides_frames_and_changes_nothing_else():
    config = SMALL.language_model
    rows = pack_rows(spoken(6), config, 16, np.random.default_rng(4))
    before = rows.columns.clone()
    shown = noisy(rows, config, np.random.default_rng(5))
    assert torch.equal(rows.columns, before)
    frames = rows.columns[:, 0] >= config.semantic_begin
    changed = (shown != rows.columns).any(1)
    assert not changed[~frames].any()
    hidden = (shown[:, 0] == config.semantic_begin - 1) & frames
    assert 0.2 < hidden[frames].float().mean() < 0.5
    assert not shown[:, 1:].transpose(1, 2)[hidden].any()  # their codes neither
    shares = [hidden[0][rows.document[0] == d].float().mean() for d in range(1, int(rows.document[0].max()) + 1)]
    assert max(shares) - min(shares) > 0.2  # each document its own share
    there = {tuple(c) for c in before.transpose(1, 2)[frames].tolist()}
    assert {tuple(c) for c in shown.transpose(1, 2)[frames & ~hidden].tolist()} <= there


def test_most_words_are_shown_as_sounds_and_some_in_letters():
    text = "all the king's horses and all the king's men, xyzzy."
    found = [reader(SMALL)(text, np.random.default_rng(seed)) for seed in range(60)]
    assert pronounced(text) in found
    assert all(each.endswith(" xyzzy.") and each.count(" ") == text.count(" ") for each in found)
    spelt = sum(word.islower() for each in found for word in each[:-7].split()) / (60 * 9)
    assert 0.05 < spelt < 0.16
    assert reader(replace(SMALL, text="spoken"))(text, np.random.default_rng(0)) == text


def test_the_pace_of_letters_is_found_in_the_lengths_of_clips():
    random = np.random.default_rng(0)
    corpus = []
    for i in range(300):
        text = "".join(random.choice(list("aab,"), 30))
        frames = 5 + sum({"a": 1, "b": 2, ",": 6}[c] for c in text) + int(text[-1] != ".")
        corpus.append(Spoken(Clip(f"{i}", "word", "train", "slt", text, 1, ""), np.zeros((6, frames), np.int64)))
    found = pace(corpus)
    assert found[list(b"ab,")] == pytest.approx([1, 2, 6], abs=0.3)


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
    assert set(task.validate()) == {"semantic", "codes", "guide"}


def test_a_packed_voice_is_an_engine_that_speaks_by_name(tmp_path):
    language_model, codec = random_weights(SMALL, 0)
    path = tmp_path / "voice.safetensors"
    save_weights(path, SMALL, halved(language_model), halved(codec))
    engine = ReferenceEngine(*load_weights(path))
    torch.testing.assert_close(engine.language_model.norm.weight, language_model.norm.weight, atol=1e-3, rtol=1e-3)
    assert engine.speakers == ("slt", "rms", "awb")
    prompt = engine.encode_text("Dr. Who", speaker="rms")
    assert prompt[0].tolist() == [256, 260, *b"IAT4L P7.", 258]
    audio, _ = engine.synthesize("Hello there", speaker="rms", seed=0, max_new_tokens=4)
    assert audio.size == 4 * 640 - SMALL.codec.lag
    language_model.norm.weight[0] = 1e6
    with pytest.raises(ReferenceEngineError, match="float16"):
        halved(language_model)


def test_the_voice_fits_its_budget():
    language_model, codec = (sum(p.numel() for p in module.parameters()) for module in build(VOICE))
    assert language_model + 2 * codec < 15_900_000


def test_half_of_the_documents_have_a_reference():
    """Also among clips of many speakers, where most pairs that are drawn are of two."""
    speakers = ("slt", "rms", "awb")
    corpus = [replace(each, clip=replace(each.clip, speaker=speakers[i % 3])) for i, each in enumerate(spoken(12))]
    rows = pack_rows(corpus, LM, 60, np.random.default_rng(0))
    turns = torch.cat(
        [
            torch.bincount(document[tokens == LM.im_start])[1:]
            for tokens, document in zip(rows.columns[:, 0], rows.document, strict=True)
        ]
    )
    assert set(turns.tolist()) == {1, 2}
    assert 0.4 < (turns == 2).float().mean() < 0.6


def test_a_corpus_without_a_reference_is_an_error():
    corpus = [replace(each, codes=each.codes[:, :30]) for each in spoken(4)]
    with pytest.raises(ReferenceEngineError, match="two clips of a speaker"):
        pack_rows(corpus, LM, 4, np.random.default_rng(0))


def test_some_documents_are_unconditional():
    """Their bytes cannot be read, nor is a head guided to them; what is learnt of them stays."""
    corpus = spoken(6)
    conditioned = pack_rows(corpus, LM, 2, np.random.default_rng(0))
    assert not (conditioned.columns[:, 0] == LM.untold).any()
    rows = pack_rows(corpus, LM, 4, np.random.default_rng(0), unconditional_share=0.5)
    tokens = rows.columns[:, 0]
    hidden = 0
    for row in range(4):
        for document in range(1, int(rows.document[row].max()) + 1):
            own = rows.document[row] == document
            text, unread = (tokens[row][own] < 256).sum(), (tokens[row][own] == LM.untold).sum()
            assert (text > 0) != (unread > 0)
            assert (rows.letter[row, 1][own].max() > 0) == bool(text > 0)
            assert (rows.target[row][own] >= 0).sum() > 40
            hidden += int(unread > 0)
    assert 0 < hidden < sum(int(d.max()) for d in rows.document)


def test_a_voice_learns_on_with_more_layers_and_begins_as_it_was(tmp_path):
    language_model, codec = random_weights(SMALL, 3)
    save_weights(tmp_path / "voice.safetensors", SMALL, language_model, codec)
    lm = SMALL.language_model
    deeper = replace(
        SMALL, language_model=replace(lm, slow=replace(lm.slow, layers=4), fast=replace(lm.fast, layers=2))
    )
    model = grown(tmp_path / "voice.safetensors", deeper)
    assert (len(model.layers), len(model.fast_layers)) == (4, 2)
    rows = pack_rows(spoken(3), LM, 1, np.random.default_rng(0))
    with torch.no_grad():
        before, after = losses(language_model, rows), losses(model, rows)
    assert after["semantic"] == pytest.approx(before["semantic"].item(), rel=1e-6)
    assert after["codes"] == pytest.approx(before["codes"].item(), rel=1e-6)
    losses(model, rows)["semantic"].backward()
    assert model.layers[3].ffn.down.weight.grad.abs().max() > 0, "what adds nothing learns to"
    with pytest.raises(ReferenceEngineError, match="another language model"):
        grown(
            tmp_path / "voice.safetensors",
            replace(SMALL, language_model=replace(lm, slow=replace(lm.slow, ffn_dim=64))),
        )


def test_a_voice_learns_on_with_more_codebooks_and_begins_as_it_was(tmp_path):
    quantizer, books = SMALL.codec.quantizer, LM.codebooks - 2
    fewer = replace(
        SMALL,
        language_model=replace(SMALL.language_model, codebooks=books),
        codec=replace(SMALL.codec, quantizer=replace(quantizer, codebook_sizes=quantizer.codebook_sizes[:books])),
    )
    language_model, codec = random_weights(fewer, 3)
    save_weights(tmp_path / "voice.safetensors", fewer, language_model, codec)
    model = grown(tmp_path / "voice.safetensors", SMALL)
    first = spoken(1)[0]
    head = turn(first.clip.text, first.codes, SMALL.language_model, "slt")
    columns = torch.from_numpy(head)[None]
    length = columns.shape[2]
    with torch.no_grad():
        before = language_model.slow(columns[:, : 1 + books], language_model.slow_cache(length), 0)
        after = model.slow(columns, model.slow_cache(length), 0)
        for own, grew in zip(before, after, strict=True):
            torch.testing.assert_close(grew, own, atol=1e-4, rtol=1e-4)
        x = torch.stack((before[1], *language_model.fast_embeddings.weight[: books - 1, None]), dim=1)
        own, grew = (m.fast(x, m.fast_cache(), 0) for m in (language_model, model))
        torch.testing.assert_close(grew, own, atol=1e-4, rtol=1e-4)
    rows = pack_rows(spoken(3), SMALL.language_model, 1, np.random.default_rng(0))
    losses(model, rows)["semantic"].backward()
    assert model.codebook_embeddings.weight.grad[-512:].abs().max() > 0, "what is not heard yet will be"
