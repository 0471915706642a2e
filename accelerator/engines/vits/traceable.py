"""VITS as two modules that `torch.export` can follow: texts to a prior, latents to audio.

`Text` and `Decoder` run on a VitsModel's own modules, or on those of a copy that `exportable` makes of it, where what
branches or breaks the tracer is said in other words. T tokens, C channels of the latents, L frames, E of an embedding.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODELING", "Decoder", "Text", "answer", "attend", "exportable", "made", "speaker_input", "spline_back"]

MODELING = "transformers.models.vits.modeling_vits"  # what it says takes part in every key


class Text(nn.Module):
    """Tokens [1, T], scaled noise [1, 2, T] and perhaps a speaker -> [1, T, 2C + 1]: see above."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.durations = model.text_encoder, model.duration_predictor
        self.stochastic = model.config.use_stochastic_duration_prediction
        self.flagged = getattr(model, "flagged", False)

    def forward(self, tokens: Tensor, noise: Tensor, speaker: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(tokens).unsqueeze(-1).to(noise.dtype)  # [1, T, 1]
        encoded = self.encoder(input_ids=tokens, padding_mask=mask, return_dict=True)
        hidden, speaker = encoded.last_hidden_state.transpose(1, 2), _named(speaker, self.flagged)
        mask = mask.transpose(1, 2)
        if self.stochastic:
            log_durations = self._backwards(hidden, mask, noise, speaker)
        else:
            log_durations = self.durations(hidden, mask, speaker) + 0 * noise[:, :1]
        stats = (encoded.prior_means, encoded.prior_log_variances, log_durations.transpose(1, 2))
        return torch.cat(stats, dim=-1)

    def _backwards(self, hidden: Tensor, mask: Tensor, noise: Tensor, speaker: Tensor | None) -> Tensor:
        """The stochastic duration predictor's flows from given noise: log durations [1, 1, T]."""
        own = self.durations
        x = own.conv_pre(hidden)
        if speaker is not None:
            x = x + own.cond(speaker)
        x = own.conv_proj(own.conv_dds(x, mask)) * mask
        first, _, *rest = own.flows  # the second one would change only the half that is not asked for
        latents = noise
        for flow in (*reversed(rest), first):
            latents, _ = flow(latents.flip(1), mask, global_conditioning=x, reverse=True)
        return latents[:, :1]


class Decoder(nn.Module):
    """Latents [1, C, L] and perhaps a speaker -> audio [1, L * hop]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.flow, self.decoder = model.flow, model.decoder
        self.flagged = getattr(model, "flagged", False)

    def forward(self, latents: Tensor, speaker: Tensor | None = None) -> Tensor:
        speaker = _named(speaker, self.flagged)
        x = self.flow(latents, torch.ones_like(latents[:, :1]), speaker, reverse=True)
        return self.decoder(x, speaker).squeeze(1)


def made(kind: type[Text | Decoder], model: Callable[[], Any]) -> nn.Module:
    """A module to be traced. model: makes what `exportable` answers."""
    return kind(model())


def answer(module: nn.Module, *inputs: np.ndarray | None) -> np.ndarray:
    """What a module says, in numpy's arrays."""
    with torch.inference_mode():
        given = (None if each is None else torch.from_numpy(each) for each in inputs)
        return np.asarray(module(*given).numpy())


def speaker_input(model: Any, speaker: int | None) -> np.ndarray | None:
    """The graphs' input for a speaker, float32 [1, E + 1, 1]; None if the model has only one."""
    config = model.config
    if config.num_speakers < 2:
        return None
    given = np.zeros((1, config.speaker_embedding_size + 1, 1), np.float32)
    if speaker is not None:
        given[0, :-1, 0], given[0, -1, 0] = model.embed_speaker.weight[speaker].detach().numpy(), 1.0
    return given


def _named(speaker: Tensor | None, flagged: bool) -> Tensor | None:
    """What the engine's own modules take: an embedding, or None. Exported ones take the flag after it as well."""
    if speaker is None or flagged:
        return speaker
    return speaker[:, :-1] if bool(speaker[0, -1, 0]) else None


def exportable(model: Any) -> Any:
    """A copy of a VitsModel to be traced: weights without norms, attention and splines without branches.

    Conditions take `speaker`: their biases are weights of its last channel.
    """
    from transformers.models.vits import modeling_vits as vits

    made = copy.copy(model)
    made._modules = {
        name: copy.deepcopy(child)
        for name, child in model.named_children()
        if name in ("text_encoder", "duration_predictor", "flow", "decoder")
    }
    made.flagged = model.config.num_speakers > 1
    for owner in list(made.modules()):
        for name, child in owner.named_children():
            if "parametrizations" in child._modules:
                setattr(owner, name, _folded(child))
            elif hasattr(child, "weight_g"):
                nn.utils.remove_weight_norm(child)
    forwards: dict[type, Callable[..., Any]] = {
        vits.VitsAttention: attend,
        vits.VitsConvFlow: _flow_back,
        vits.VitsWaveNet: _gated,
    }
    for module in list(made.modules()):
        if type(module) in forwards:
            vars(module)["forward"] = functools.partial(forwards[type(module)], module)
        for name in ("cond", "cond_layer"):
            if isinstance(condition := getattr(module, name, None), nn.Conv1d):
                setattr(module, name, _with_bias_inside(condition))
    return made


def _folded(module: Any) -> nn.Module:
    """The module with the weight that its parametrization makes. Taking that away would take it from its class."""
    kind: Any = type(module).__mro__[1]
    plain: Any = kind.__new__(kind)
    plain.__dict__ = {**vars(module), "_modules": {}}
    plain._parameters = {
        "weight": nn.Parameter(module.weight.detach().clone(), requires_grad=False),
        "bias": module.bias,
    }
    return plain


def _with_bias_inside(conv: Any) -> nn.Conv1d:
    """The same of an input with a one behind it; of zeros, zeros."""
    folded = nn.Conv1d(conv.in_channels + 1, conv.out_channels, 1, bias=False)
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    folded.weight = nn.Parameter(torch.cat((conv.weight, bias[:, None, None]), dim=1).detach(), requires_grad=False)
    return folded


def attend(own: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """`VitsAttention` of [1, T, D], without a mask: a table's row for each distance up to the window, or none."""
    batch, length = hidden_states.shape[:2]

    def heads(projection: nn.Module) -> Tensor:
        return projection(hidden_states).view(batch, length, own.num_heads, own.head_dim).transpose(1, 2)

    q, k, v = heads(own.q_proj) * own.scaling, heads(own.k_proj), heads(own.v_proj)  # [1, H, T, E]
    scores = q @ k.transpose(2, 3)
    if not own.window_size:
        attended = scores.softmax(-1) @ v
    else:
        window = own.window_size
        place = torch.arange(length)
        distance = place[None, :] - place[:, None] + window  # [T, T], from 0 to 2 window where there is a row for it
        near = (distance >= 0) & (distance <= 2 * window)
        rows = distance.clamp(0, 2 * window).expand(batch, own.num_heads, length, length)
        scores = scores + (q @ own.emb_rel_k[0].T).gather(3, rows) * near
        weights = scores.softmax(-1)
        column = place[:, None] + torch.arange(-window, window + 1)[None, :]  # [T, 2 window + 1]
        inside = (column >= 0) & (column < length)
        columns = column.clamp(min=0).minimum(torch.full_like(column, length - 1))
        shares = weights.gather(3, columns.expand(batch, own.num_heads, length, 2 * window + 1)) * inside
        attended = weights @ v + shares @ own.emb_rel_v[0]
    return own.out_proj(attended.transpose(1, 2).reshape(batch, length, own.embed_dim)), None


def _gated(own: Any, inputs: Tensor, padding_mask: Tensor, global_conditioning: Tensor | None = None) -> Tensor:
    """`VitsWaveNet` of [1, D, L]."""
    size, total = own.hidden_size, torch.zeros_like(inputs)
    conditions = None if global_conditioning is None else own.cond_layer(global_conditioning).split(2 * size, dim=1)
    x = inputs
    for i, (layer, onward) in enumerate(zip(own.in_layers, own.res_skip_layers, strict=True)):
        both = layer(x) if conditions is None else layer(x) + conditions[i]
        answer = onward(both[:, :size].tanh() * both[:, size:].sigmoid())
        if i + 1 < own.num_layers:
            x = (x + answer[:, :size]) * padding_mask
            answer = answer[:, size:]
        total = total + answer
    return total * padding_mask


def _flow_back(
    own: Any, inputs: Tensor, padding_mask: Tensor, global_conditioning: Tensor | None = None, reverse: bool = True
) -> tuple[Tensor, None]:
    """`VitsConvFlow`, backwards."""
    first, second = inputs.split(own.half_channels, dim=1)
    x = own.conv_proj(own.conv_dds(own.conv_pre(first), padding_mask, global_conditioning)) * padding_mask
    batch, channels, length = first.shape
    table = x.view(batch, channels, 3 * own.num_bins - 1, length).transpose(2, 3)  # [1, channels, T, 3 bins - 1]
    widths, heights, slopes = table.split([own.num_bins, own.num_bins, own.num_bins - 1], dim=-1)
    scale = own.filter_channels**-0.5
    second = spline_back(second, widths * scale, heights * scale, slopes, own.tail_bound)
    return torch.cat((first, second), dim=1) * padding_mask, None


def spline_back(
    y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float, least: float = 1e-3
) -> Tensor:
    """The x that a monotonic rational quadratic spline maps to y; beyond `bound` it is the identity.

    y [...]; widths and heights [..., n] before their softmax, slopes [..., n - 1] at the inner knots before their
    softplus; no width, height (as a share) or slope is below `least`. Durkan et al. 2019, equations 4 to 8.
    """
    n = widths.shape[-1]

    def knots(shares: Tensor) -> Tensor:
        inner = (least + (1 - least * n) * shares.softmax(-1)).cumsum(-1)[..., :-1] * (2 * bound) - bound
        end = torch.full_like(shares[..., :1], bound)
        return torch.cat((-end, inner, end), dim=-1)

    xs, ys = knots(widths), knots(heights)  # [..., n + 1]
    outer = torch.full_like(slopes[..., :1], math.log(math.exp(1 - least) - 1))  # a slope of one
    slope = least + F.softplus(torch.cat((outer, slopes, outer), dim=-1))
    inside = y.clamp(-bound, bound)
    bin_ = ((inside[..., None] >= ys[..., 1:-1]).sum(-1, keepdim=True)).clamp(max=n - 1)  # [..., 1]

    def at(table: Tensor) -> Tensor:
        return table.gather(-1, bin_)[..., 0]

    x0, y0, width, height = at(xs), at(ys), at(xs[..., 1:] - xs[..., :-1]), at(ys[..., 1:] - ys[..., :-1])
    d0, d1, mean = at(slope), at(slope[..., 1:]), height / width
    above, bend = inside - y0, d0 + d1 - 2 * mean
    a = height * (mean - d0) + above * bend
    b = height * d0 - above * bend
    c = -mean * above
    root = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
    return torch.where((y >= -bound) & (y <= bound), root * width + x0, y)
