"""Training the dual autoregressive model: teacher forcing over packed rows of turns.

A document is what an engine would be asked for, and its answer: a turn of a speaker chosen by name (its token behind
`im_start`), or two turns of one speaker, the first of which is the reference of the second. A row holds as many
documents as fit; none sees another. B rows, T columns, C codebooks, N frames to be predicted.

Speech that goes on as it began is learnt soon, by heart if need be, and then the text is never read. So much of what
was said is hidden from the model, a share that differs between documents (as Tacotron's dropout does: Wang et al. 2017,
arXiv:1703.10135), and a few heads are told where to look: at the letters that should be spoken at that time (guided
attention: Tachibana et al. 2018, arXiv:1710.08969).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import EngineConfig, LanguageModelConfig
from ..errors import ReferenceEngineError
from ..language_model import LanguageModel
from ..pronounce import pronounced
from ..tokenizer import encode_bytes, frame_columns, text_columns, unconditional
from ..transformer import Block, rope_table, rotate
from ..weights import load_weights, random_weights
from .loop import Average, Checkpoint, Schedule, cosine, run
from .tokens import Spoken, open_tokens
from .voice import SPEAKER_TOKENS, VOICE

__all__ = [
    "LanguageModelTask",
    "Rows",
    "cross_entropies",
    "grown",
    "losses",
    "noisy",
    "pace",
    "pack_rows",
    "reader",
    "train_language_model",
    "trained_language_model",
    "turn",
]

STEPS, BATCH = 15_000, 6
COLUMNS = 640  # of a row: a sentence behind a reference has 300 in the mean, and one in a hundred has 590
_PEAK, _FURTHER_PEAK = 1.5e-3, 5e-4  # learning rate; that of a voice which learns on
_REFERENCED = 0.5  # share of documents with a reference rather than a name
_SHORTEST_REFERENCE = 40  # frames
_MISFITS = 3  # documents in turn that find no place; more would favour the short ones
_TRIES = 1000
_SPELT = 0.1  # share of known words that are shown in letters, so that the voice can read what no dictionary has
_HIDDEN = (-0.25, 0.9)  # share of a document's frames that are hidden: uniform between, negative is none
_NOISE = 0.05  # share of frames shown as another one
_UNCONDITIONAL = 0.15  # share of documents without their text, which is what guidance compares with
_CODES = 0.33  # share of frames whose other codes are learnt in a step: reading the text is what takes long
_GUIDED_LAYERS, _GUIDED_HEADS = (1, 2, 3), 2  # the heads of the first key-value head
_GUIDE_WIDTH = 2.5  # letters: the standard deviation of where they are looked for
_LEAD = 4.0  # frames of silence before the first letter
_GUIDE_UNTIL, _GUIDE_REST = 0.5, 0.05  # share of the schedule after which the guide has faded to so much


def train_language_model(
    work: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 2,
    config: EngineConfig = VOICE,
    compiled: bool = False,
    voice: Path | None = None,
    **options: Any,
) -> int:
    """Train, or go on; the step reached. `options` are those of `loop.run`. compiled: slow to start, then faster.

    voice: a packed voice whose language model the first run begins with; see `grown` for what may differ.
    """
    torch.set_num_threads(threads)
    folder = work / "language-model"
    schedule = Checkpoint(folder / "checkpoint.pt").continued(
        steps, batch, Schedule(steps=STEPS, batch=BATCH, seed=seed, further=voice is not None)
    )
    task = LanguageModelTask(
        config,
        open_tokens(work, "train"),
        open_tokens(work, "valid"),
        schedule,
        device=device,
        compiled=compiled,
        voice=voice,
    )
    return run(task, folder, schedule, **options)


def trained_language_model(work: Path, config: EngineConfig = VOICE, *, unfinished: bool = False) -> LanguageModel:
    """The averaged weights, frozen. Raises ReferenceEngineError before the schedule's end, unless `unfinished`."""
    model = random_weights(config, 0)[0]
    model.load_state_dict(Checkpoint(work / "language-model" / "checkpoint.pt").averaged(unfinished=unfinished))
    return model


@dataclass(frozen=True)
class Rows:
    columns: Tensor  # int64 [B, 1+C, T]
    document: Tensor  # int64 [B, T], 0 where a row is empty
    target: Tensor  # int64 [B, T]: index among `candidate_ids` of the next column's token; -100 where none is learnt
    letter: Tensor  # float32 [B, 2, T]: the column where the letter of the next frame should be, and the first column
    # behind the turn's text; zeros where no frame follows

    def to(self, device: str) -> Rows:
        return Rows(*(each.to(device) for each in (self.columns, self.document, self.target, self.letter)))


class LanguageModelTask:
    """See `loop.Task`."""

    def __init__(
        self,
        config: EngineConfig,
        train: Sequence[Spoken],
        valid: Sequence[Spoken],
        schedule: Schedule,
        *,
        device: str = "cpu",
        compiled: bool = False,
        voice: Path | None = None,
    ) -> None:
        self.entropies = torch.compile(cross_entropies) if compiled else cross_entropies
        self.config, self.schedule, self.device = config.language_model, schedule, device
        self.train, self.valid = train, valid
        self.read = reader(config)
        self.pace = pace(train, self.read)
        self.model = (_prepared(config, schedule.seed) if voice is None else grown(voice, config)).to(device)
        self.modules: dict[str, nn.Module] = {"language_model": self.model}
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        flat = [p for p in self.model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.05}, {"params": flat}]
        adam = torch.optim.AdamW(groups, lr=_PEAK, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"language_model": adam}
        self.unconditional_share = _UNCONDITIONAL if self.config.untold is not None else 0.0
        self.average: Average | None = Average(self.model, 0.999)

    def step(self, step: int, random: np.random.Generator) -> dict[str, float]:
        rows = pack_rows(
            self.train,
            self.config,
            self.schedule.batch,
            random,
            pace=self.pace,
            read=self.read,
            unconditional_share=self.unconditional_share,
        )
        shown = noisy(rows, self.config, random).to(self.device)
        rows = rows.to(self.device)
        adam = self.optimizers["language_model"]
        with torch.device(self.device), torch.autocast(self.device, dtype=torch.bfloat16):
            parts = losses(self.model, rows, self.entropies, shown=shown, random=random)
        adam.zero_grad(set_to_none=True)
        further = self.schedule.further
        faded = 1.0 if further else min(1.0, step / (_GUIDE_UNTIL * self.schedule.steps))
        guide = 1.0 - (1.0 - _GUIDE_REST) * faded
        (parts["semantic"] + parts["codes"] + guide * parts["guide"]).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
        for group in adam.param_groups:
            group["lr"] = cosine(step, self.schedule.steps, peak=_FURTHER_PEAK if further else _PEAK)
        adam.step()
        cast(Average, self.average).update(self.model)
        return {**{name: value.item() for name, value in parts.items()}, "gradient": norm}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        with torch.device(self.device), cast(Average, self.average).applied(self.model):
            for seed in range(4):
                random = np.random.default_rng(seed)
                rows = pack_rows(self.valid, self.config, self.schedule.batch, random, pace=self.pace, read=self.read)
                for name, value in losses(self.model, rows.to(self.device)).items():
                    totals[name] = totals.get(name, 0.0) + value.item() / 4
        return totals


Read = Callable[[str, np.random.Generator], str]
"""What the model is shown of words."""


def _as_they_are(words: str, random: np.random.Generator) -> str:
    return words


def reader(config: EngineConfig) -> Read:
    """How a voice's texts are shown to it in training."""
    if config.text != "sounds":
        return _as_they_are
    return lambda words, random: pronounced(words, spell=lambda word: bool(random.random() < _SPELT))


def turn(text: str, codes: np.ndarray, config: LanguageModelConfig, speaker: str | None = None) -> np.ndarray:
    """A finished turn, as columns int64 [1+C, T]."""
    name = [] if speaker is None else [SPEAKER_TOKENS[speaker]]
    head = text_columns([config.im_start, *name, *encode_bytes(text), config.voice], config)
    return np.concatenate((head, frame_columns(codes, config), text_columns([config.im_end], config)), axis=1)


def pack_rows(
    corpus: Sequence[Spoken],
    config: LanguageModelConfig,
    rows: int,
    random: np.random.Generator,
    columns: int = COLUMNS,
    *,
    pace: np.ndarray | None = None,
    read: Read = _as_they_are,
    unconditional_share: float = 0.0,
) -> Rows:
    """Documents drawn at random, each into the first row that has place for it, until a few in turn find none.

    pace: how long each byte takes, see `pace`; None: all as long. unconditional_share: of documents, without their
    text.
    """
    paced = np.ones(256) if pace is None else pace
    table = torch.zeros(rows, 1 + config.codebooks, columns, dtype=torch.int64)
    owner = torch.zeros(rows, columns, dtype=torch.int64)
    target = torch.full((rows, columns), -100)
    letter = torch.zeros(rows, 2, columns)
    filled, number, misfits = [0] * rows, [0] * rows, 0
    while misfits < _MISFITS:
        document = _document(corpus, config, random, columns, read)
        length = document.shape[1]
        row = next((i for i in range(rows) if filled[i] + length <= columns), None)
        if row is None:
            misfits += 1
            continue
        misfits, number[row] = 0, number[row] + 1
        part = slice(filled[row], filled[row] + length)
        conditioned = not unconditional_share or random.random() >= unconditional_share
        table[row, :, part] = torch.from_numpy(document if conditioned else unconditional(document, config))
        owner[row, part] = number[row]
        target[row, part] = torch.from_numpy(_targets(document[0], config))
        if conditioned:
            letter[row, :, part] = torch.from_numpy(_letters(document[0], config, filled[row], paced))
        filled[row] += length
    return Rows(table, owner, target, letter)


def noisy(rows: Rows, config: LanguageModelConfig, random: np.random.Generator) -> Tensor:
    """The columns [B, 1+C, T] with many frames hidden, and some replaced by other frames of the same rows."""
    batch, height, length = rows.columns.shape
    flat = rows.columns.transpose(1, 2).reshape(-1, height).clone()  # [B T, 1+C]
    frames = (flat[:, 0] >= config.semantic_begin).nonzero().flatten().numpy()
    if len(frames):
        changed = frames[random.random(len(frames)) < _NOISE]
        flat[changed] = flat[random.choice(frames, len(changed))]
    shares = random.uniform(*_HIDDEN, (batch, int(rows.document.max()) + 1))
    share = np.take_along_axis(shares, rows.document.numpy(), axis=1).reshape(-1)[frames]
    hidden = torch.from_numpy(text_columns([config.semantic_begin - 1], config)[:, 0])  # an id that stands for nothing
    flat[frames[random.random(len(frames)) < share]] = hidden
    return flat.reshape(batch, length, height).transpose(1, 2)


def pace(corpus: Sequence[Spoken], read: Read = _as_they_are) -> np.ndarray:
    """How many frames each byte takes in the mean: float64 [256], by least squares over the lengths of all clips."""
    counts = np.zeros((len(corpus), 257))
    counts[:, 256] = 1.0  # what every clip has: silence at its ends
    random = np.random.default_rng(0)
    for row, each in zip(counts, corpus, strict=True):
        np.add.at(row, np.frombuffer(bytes(encode_bytes(read(each.clip.text, random))), np.uint8), 1.0)
    lengths = np.array([each.codes.shape[1] for each in corpus], float)
    least = counts.T @ counts + 3.0 * np.eye(257)  # ridge: bytes that are rare, or never come
    return np.maximum(np.linalg.solve(least, counts.T @ lengths)[:256], 0.1)


def _document(
    corpus: Sequence[Spoken], config: LanguageModelConfig, random: np.random.Generator, columns: int, read: Read
) -> np.ndarray:
    referenced = random.random() < _REFERENCED  # once: pairs are refused more often than clips
    for _ in range(_TRIES):
        main = corpus[int(random.integers(len(corpus)))]
        if referenced:
            other = corpus[int(random.integers(len(corpus)))]
            if other.clip.speaker != main.clip.speaker or other.codes.shape[1] < _SHORTEST_REFERENCE:
                continue
            parts = [turn(read(spoken.clip.text, random), spoken.codes, config) for spoken in (other, main)]
            document = np.concatenate(parts, axis=1)
        else:
            document = turn(read(main.clip.text, random), main.codes, config, main.clip.speaker)
        if document.shape[1] <= columns:
            return document
    kind = "two clips of a speaker, one of them long enough for a reference," if referenced else "a clip"
    raise ReferenceEngineError(f"in {_TRIES} tries the corpus had no place for {kind} in {columns} columns")


def _targets(tokens: np.ndarray, config: LanguageModelConfig) -> np.ndarray:
    following = np.append(tokens[1:], -1)
    semantic = (following >= config.semantic_begin) & (following <= config.semantic_end)
    result = np.where(semantic, following - config.semantic_begin, -100)
    return np.where(following == config.im_end, config.codebook_size, result)


def _letters(tokens: np.ndarray, config: LanguageModelConfig, first: int, pace: np.ndarray) -> np.ndarray:
    """`Rows.letter` of a document [T] whose first column is `first` of its row: float32 [2, T]."""
    result = np.zeros((2, len(tokens)), np.float32)
    starts = np.flatnonzero(tokens == config.im_start)
    for start, end in zip(starts, np.flatnonzero(tokens == config.im_end), strict=True):
        voice = start + int(np.flatnonzero(tokens[start:end] == config.voice)[0])
        text = start + int((tokens[start:voice] < config.im_start).argmax())  # bytes
        asking = np.arange(voice, end)  # each column asks for the next frame, the last one for the end
        lead = min(_LEAD, 0.1 * len(asking))
        said = pace[tokens[text:voice]].cumsum()
        ends = np.concatenate(([lead], lead + said * (len(asking) - lead) / said[-1]))  # frame at which a letter ends
        result[0, asking] = first + text + np.interp(asking - voice + 0.5, ends, np.arange(len(ends)))
        result[1, asking] = first + voice
    return result


def losses(
    model: LanguageModel,
    rows: Rows,
    entropies: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
    *,
    shown: Tensor | None = None,
    random: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """Losses in nats: `semantic` a column (first code or end), `codes` a code of the fast transformer, `guide` a column
    and guided head: minus the logarithm of the attention that lies near the diagonal.

    `entropies` is `cross_entropies`, or that function compiled. shown: what the model sees instead of the columns.
    random: chooses the frames of which `codes` is taken; None takes all.
    """
    size, target = model.config.codebook_size, rows.target.flatten()
    framed = ((target >= 0) & (target < size)).nonzero().flatten()  # places before a frame, among all columns
    coded = len(framed)
    if random is not None:
        framed, coded = framed[torch.from_numpy(random.permutation(coded))], max(1, int(_CODES * coded))
    places = torch.cat((framed, (target == size).nonzero().flatten()))  # the end has no codes
    following = torch.roll(rows.columns[:, 1:], -1, 2).transpose(1, 2).flatten(0, 1)[framed[:coded]]
    semantic, codes, guide = (entropies or cross_entropies)(
        model, rows.columns if shown is None else shown, rows.document, places, target[places], following, rows.letter
    )
    return {"semantic": semantic, "codes": codes, "guide": guide}


def cross_entropies(
    model: LanguageModel,
    columns: Tensor,
    document: Tensor,
    places: Tensor,
    target: Tensor,
    following: Tensor,
    letter: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(semantic, codes, guide). places [P] of B * T, the first N of which precede the frames following [N, C]; target
    [P]."""
    config = model.config
    seen = (document[:, :, None] == document[:, None, :]).tril()[:, None]  # [B, 1, T, T]
    x = model.embed(columns)
    rope = rope_table(columns.shape[2], config.slow)
    guide = torch.zeros(())
    for i, block in enumerate(cast(Iterable[Block], model.layers)):
        if i in _GUIDED_LAYERS:
            guide = guide + _guide(block, x, rope, seen, letter) / len(_GUIDED_LAYERS)
        x = block(x, rope, mask=seen)
    hidden = x.flatten(0, 1)[places]
    normed = model.norm(hidden)
    semantic = F.cross_entropy(model.slow_logits(normed).float(), target)

    start = (hidden if config.fast_input == "pre_norm" else normed)[: following.shape[0]]
    embedded = model.fast_embeddings(following[:, :-1])  # [N, C-1, D]
    y = torch.cat((start[:, None].to(embedded), embedded), dim=1)
    rope = rope_table(config.codebooks, config.fast)
    for block in cast(Iterable[Block], model.fast_layers):
        y = block(y, rope, causal=True)
    logits = model.fast_output(model.fast_norm(y[:, 1:])).float()  # position i says code i
    return semantic, F.cross_entropy(logits.flatten(0, 1), following[:, 1:].flatten()), guide


def _guide(block: Block, x: Tensor, rope: Tensor, seen: Tensor, letter: Tensor) -> Tensor:
    """Minus the logarithm of the attention near the diagonal, over the guided heads of a block and the columns."""
    own = block.attention
    size, keys = _GUIDED_HEADS * own.head_dim, own.heads * own.head_dim
    weight = torch.cat((own.qkv.weight[:size], own.qkv.weight[keys : keys + own.head_dim]))
    both = F.linear(block.attention_norm(x), weight).unflatten(-1, (-1, own.head_dim))  # [B, T, heads + 1, E]
    q = rotate(own.q_norm(both[:, :, :-1]), rope).transpose(1, 2)
    k = rotate(own.k_norm(both[:, :, -1:]), rope).transpose(1, 2)
    scores = (q @ k.transpose(2, 3)).float() * own.head_dim**-0.5
    attention = scores.masked_fill(~seen, float("-inf")).softmax(-1)  # [B, heads, T, T]
    column = torch.arange(x.shape[1], dtype=torch.float32)
    centre, end = (each[:, :, None] for each in letter.unbind(1))  # [B, T, 1]
    asking = letter[:, 1] > 0  # [B, T]
    near = torch.exp(-0.5 * ((column - centre) / _GUIDE_WIDTH).square()) * (column < end)
    mass = (attention * near[:, None]).sum(-1)  # [B, heads, T]
    return -((mass + 1e-4).log() * asking[:, None]).sum() / (asking.sum() * _GUIDED_HEADS).clamp(min=1)


def _prepared(config: EngineConfig, seed: int) -> LanguageModel:
    """Random weights from which training goes well: embeddings and heads small, so that no token is preferred."""
    model = random_weights(config, seed)[0]
    dim = config.language_model.slow.dim
    for table in (model.embeddings, model.codebook_embeddings, model.fast_embeddings):
        table.weight.data.mul_(0.1)
    for weight in (model.output_weight, model.fast_output.weight):
        weight.data.normal_(0, 0.5 * dim**-0.5, generator=torch.Generator().manual_seed(seed))
    return model.requires_grad_(True).train()


def grown(voice: Path, config: EngineConfig) -> LanguageModel:
    """A packed voice's language model, to be trained on, saying at first what it said.

    It may have fewer layers than `config` asks for: each further one begins as a copy of the last that adds nothing yet
    (Chen et al. 2016, "Net2Net"). It may have fewer codebooks: it hears nothing of further ones yet. Raises
    ReferenceEngineError where anything else differs.
    """
    own = load_weights(voice)[1]
    model = random_weights(config, 0)[0]
    state = own.state_dict()
    for stack, count, wanted in (
        ("layers", own.config.slow.layers, config.language_model.slow.layers),
        ("fast_layers", own.config.fast.layers, config.language_model.fast.layers),
    ):
        last = f"{stack}.{count - 1}."
        for name, tensor in [(name, tensor) for name, tensor in state.items() if name.startswith(last)]:
            for index in range(count, wanted):
                rest = name.removeprefix(last)
                silent = rest in ("attention.out.weight", "ffn.down.weight")
                state[f"{stack}.{index}.{rest}"] = torch.zeros_like(tensor) if silent else tensor.clone()
    further = config.language_model.codebooks - own.config.codebooks
    if further > 0:
        _hear_more(state, own.config, further)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ReferenceEngineError(f"{voice} has another language model than the one to train: {error}") from error
    return model.requires_grad_(True).train()


def _hear_more(state: dict[str, Tensor], config: LanguageModelConfig, further: int) -> None:
    """Rows for `further` codebooks, of zeros. A column's embeddings are divided by the root of how many there are: what
    is lost so is given back, that of the token through the first code, which is the same one in other numbers."""
    table = state["codebook_embeddings.weight"]
    if config.scale_codebook_embeddings:
        size = config.codebook_size
        grows = ((config.codebooks + 1 + further) / (config.codebooks + 1)) ** 0.5
        tokens = state["embeddings.weight"][config.semantic_begin : config.semantic_end + 1]
        table = grows * table
        table[:size] += (grows - 1) * tokens
    state["codebook_embeddings.weight"] = F.pad(table, (0, 0, 0, further * config.codebook_size))
