"""MockingBird's networks as modules that `torch.export` can follow; they run on the engine's own layers.

All random draws are inputs, and so is the attention that the engine keeps in a layer: two threads may speak. B rows, T
symbols of a text, F frames, D of a text's memory, A of the attention, r frames of a step.

    Speaker   frames [n, F, 40] -> embeddings [n, 256]
    Text      symbols [1, T], voice [1, 256], style [1], two masks -> memory [1, T, D], keys [1, T, A]
    Step      what a step of the attention loop needs -> its frames, whether it is the last, and what the next one needs
    Postnet   mel [1, 80, F] -> mel [1, 80, F]
    Vocoder   mel [1, 80, F] -> audio [1, F * hop]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...parts.recurrent import GRU, LSTM

__all__ = ["STATE", "STEP", "Postnet", "Speaker", "Step", "Text", "Vocoder", "answer", "made", "state_widths"]

STATE = ("frame", "attention", "hidden1", "cell1", "hidden2", "cell2", "context", "cumulated")
"""What a step hands to the next one: the last frame, the states of three recurrent layers, what was attended to, and
how much of each symbol altogether."""
STEP = ("memory", "keys", "beyond", "mask1", "mask2", *STATE)
"""The inputs of a step. beyond [B, T]: nought, and minus infinity where a row has no symbols."""


class Speaker(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.lstm, self.linear = own.lstm, own.linear

    def forward(self, frames: Tensor) -> Tensor:
        raw = self.linear(self.lstm(frames)[0][:, -1]).relu()
        return raw / (raw.norm(dim=1, keepdim=True) + 1e-5)


class Text(nn.Module):
    """styled, by_speaker: see `engine.Settings`."""

    def __init__(self, tacotron: Any, styled: bool, by_speaker: bool) -> None:
        super().__init__()
        own = tacotron.encoder
        self.embedding, self.prenet, self.cbhg = own.embedding, own.pre_net, own.cbhg
        self.keys = tacotron.encoder_proj
        self.styled, self.by_speaker = styled, by_speaker
        if not styled:
            return
        with torch.no_grad():
            styles = copy.deepcopy(tacotron.gst).eval()
            self.attention, tokens = tacotron.gst.stl.attention, styles.stl.embed.tanh()
            # The engine gives its reference encoder nothing but noughts.
            silent = styles.encoder(torch.zeros(1, 1, tacotron.speaker_embedding_size))
            # A token that is named gets all of the attention, whatever asks for it.
            nobody = torch.zeros(1, 1, self.attention.W_query.in_features)
            table = [self.attention(nobody, token[None, None]) for token in tokens]
        self.register_buffer("silent", silent)  # [1, E / 2]
        self.register_buffer("tokens", tokens)  # [styles, E / heads]
        self.register_buffer("table", torch.cat(table)[:, 0])  # [styles, E]

    def forward(self, symbols: Tensor, voice: Tensor, style: Tensor, mask1: Tensor, mask2: Tensor) -> Any:
        x = self.prenet.fc1(self.embedding(symbols)).relu() * mask1
        x = self.prenet.fc2(x).relu() * mask2
        x = self.cbhg(x.transpose(1, 2))  # [1, T, C]
        parts = [x, voice[:, None].expand(-1, x.shape[1], -1)]
        if self.styled:
            parts.append(self._style(voice, style)[:, None].expand(-1, x.shape[1], -1))
        memory = torch.cat(parts, dim=-1)
        return memory, self.keys(memory)

    def _style(self, voice: Tensor, style: Tensor) -> Tensor:
        """[1, E]: a token's, or for -1 what the speaker attends to."""
        table, tokens, silent = (torch.as_tensor(getattr(self, name)) for name in ("table", "tokens", "silent"))
        query = torch.cat((silent, voice), dim=-1) if self.by_speaker else silent
        attended = self.attention(query[:, None], tokens[None])[:, 0]
        known = (style >= 0) & (style < len(table))
        return torch.where(known[:, None], table[style.clamp(0, len(table) - 1)], attended)


class Step(nn.Module):
    """One step of the decoder; of its projection to frames, only those that are taken."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.prenet, self.lsa = decoder.prenet, decoder.attn_net
        self.attention_rnn, self.into = decoder.attn_rnn, decoder.rnn_input
        self.rnn1, self.rnn2, self.stop = decoder.res_rnn1, decoder.res_rnn2, decoder.stop_proj
        self.frames, self.mels = int(decoder.r), int(decoder.n_mels)
        weight = decoder.mel_proj.weight.detach().unflatten(0, (self.mels, decoder.max_r))
        self.register_buffer("mel", weight[:, : self.frames].flatten(0, 1).contiguous())

    def forward(
        self,
        memory: Tensor,
        keys: Tensor,
        beyond: Tensor,
        mask1: Tensor,
        mask2: Tensor,
        frame: Tensor,
        attention: Tensor,
        hidden1: Tensor,
        cell1: Tensor,
        hidden2: Tensor,
        cell2: Tensor,
        context: Tensor,
        cumulated: Tensor,
    ) -> Any:
        """-> mel [B, 80, r], scores [B, T], stop [B, 1], and the state."""
        x = self.prenet.fc1(frame).relu() * mask1
        x = self.prenet.fc2(x).relu() * mask2
        attention = self.attention_rnn(torch.cat((context, x), dim=-1), attention)
        lsa = self.lsa
        place = lsa.L(lsa.conv(cumulated[:, None]).transpose(1, 2))
        energy = lsa.v((lsa.W(attention)[:, None] + keys + place).tanh())[..., 0]
        scores = (energy + beyond).softmax(dim=1)
        context = (scores[:, None] @ memory)[:, 0]
        x = self.into(torch.cat((context, attention), dim=1))
        hidden1, cell1 = self.rnn1(x, (hidden1, cell1))
        x = x + hidden1
        hidden2, cell2 = self.rnn2(x, (hidden2, cell2))
        x = x + hidden2
        mel = F.linear(x, torch.as_tensor(self.mel)).unflatten(1, (self.mels, self.frames))
        stop = self.stop(torch.cat((x, context), dim=1)).sigmoid()
        state = (mel[:, :, -1], attention, hidden1, cell1, hidden2, cell2, context, cumulated + scores)
        return mel, scores, stop, *state


def state_widths(tacotron: Any) -> dict[str, int]:
    """The sizes of a row's state, but for `cumulated`, which is as long as the text."""
    wide, narrow = int(tacotron.decoder.res_rnn1.hidden_size), int(tacotron.decoder.attn_rnn.hidden_size)
    widths = (int(tacotron.decoder.n_mels), narrow, wide, wide, wide, wide, int(tacotron.encoder_proj.in_features))
    return dict(zip(STATE, widths, strict=False))


class CBHG(nn.Module):
    """The engine's `CBHG` of [1, C, T], said so that no length gets fixed: what it cuts off is not made here."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.bank, self.projections = own.conv1d_bank, nn.ModuleList([own.conv_project1, own.conv_project2])
        self.before = own.pre_highway if own.highway_mismatch else nn.Identity()
        self.highways, self.rnn = own.highways, GRU(own.rnn)

    def forward(self, x: Tensor) -> Tensor:
        bank = torch.cat([_same(conv, x) for conv in self.bank], dim=1)
        y = torch.maximum(bank, F.pad(bank, (1, 0), value=-torch.inf)[..., :-1])
        for conv in self.projections:
            y = _same(conv, y)
        y = self.before((y + x).transpose(1, 2))
        for highway in self.highways:
            y = highway(y)
        return self.rnn(y)[0]


def _same(own: Any, x: Tensor) -> Tensor:
    """A `BatchNormConv`, its answer as long as its input."""
    weight = own.conv.weight
    size = weight.shape[2]
    y = F.conv1d(F.pad(x, (size // 2, size - 1 - size // 2)), weight)
    return own.bnorm(y.relu() if own.relu is True else y)


class Postnet(nn.Module):
    def __init__(self, tacotron: Any) -> None:
        super().__init__()
        self.cbhg, self.projection = tacotron.postnet, tacotron.post_proj

    def forward(self, mel: Tensor) -> Tensor:
        return self.projection(self.cbhg(mel)).transpose(1, 2)


class Vocoder(nn.Module):
    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, mel: Tensor) -> Tensor:
        return self.generator(mel)[:, 0]


def made(kind: Callable[..., nn.Module], own: Any, *settings: Any) -> nn.Module:
    """A module to be traced, on copies of the engine's layers; of some, others that can be followed."""
    module = kind(own, *settings)
    for name, child in list(module.named_children()):
        copied = copy.deepcopy(child)
        if isinstance(copied, nn.LSTM):
            copied = LSTM(copied)
        elif hasattr(copied, "conv1d_bank"):
            copied = CBHG(copied)
        setattr(module, name, copied)
    return module.eval()


def answer(module: nn.Module, *inputs: np.ndarray) -> list[np.ndarray]:
    """What a module says, in numpy's arrays."""
    with torch.inference_mode():
        said = module(*(torch.from_numpy(each) for each in inputs))
    return [each.numpy() for each in (said if isinstance(said, tuple) else (said,))]
