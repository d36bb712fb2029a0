"""Recurrent layers over packed sequences, and what is made of their states.

Elman (Finding structure in time, 1990): h_t = f(W x_t + b + U h_{t-1} + c). GRU: arXiv:1406.1078. LSTM:
doi:10.1162/neco.1997.9.8.1735. A row's answer does not depend on the length of its neighbours: rows are packed, so that
a padded step is never computed, or (training on a CPU, see `padded`) it comes after all that the row has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Cell = Literal["elman", "gru", "lstm"]
Nonlinearity = Literal["sigmoid", "tanh", "relu"]
State = list[tuple[Tensor, ...]]  # of each layer: (h,) or, for an LSTM, (h, c), each (directions, B, H)
KERNELS: dict[str, Any] = {"GRU": torch.gru, "LSTM": torch.lstm, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def padded(
    rnn: nn.RNNBase, x: Tensor, before: tuple[Tensor, ...], length: Tensor, weights: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """One layer over padded rows, as it would be over packed ones: states (B, T, H * directions) and the last h.

    On a CPU torch's packed kernel takes each step as a slice, whose gradient is as large as the whole batch: 1.8 times the
    CPU time of this at 40 steps, and it grows with the square of their number. Forwards a row's padding comes after its own
    steps; backwards each row is turned within its length, so that it does so again. States beyond a row's length mean
    nothing. weights: instead of the layer's own.
    """
    own = dict(rnn.named_parameters()) if weights is None else weights
    steps, final = torch.arange(x.shape[1]), (length - 1)[:, None]
    turned = torch.where(steps <= final, final - steps, steps)[..., None]  # (B, T, 1)
    states, last = [], []
    for number, end in enumerate(("_l0", "_l0_reverse")[: 1 + rnn.bidirectional]):
        given = x.take_along_dim(turned, 1) if number else x
        begin = tuple(s[number : number + 1].contiguous() for s in before)
        parameters = [own[f"{kind}{end}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        kernel = KERNELS[rnn.mode]
        y = kernel(given, begin if rnn.mode == "LSTM" else begin[0], parameters, True, 1, 0.0, True, False, True)[0]
        last.append(y.take_along_dim(final[..., None], 1)[:, 0])
        states.append(y.take_along_dim(turned, 1) if number else y)
    return torch.cat(states, dim=-1), torch.stack(last)


class SigmoidRNN(nn.Module):
    """Elman's cell with the logistic function, on torch's tanh kernel.

    sigmoid(z) = (1 + tanh(z / 2)) / 2: with g = 2 h - 1 the recurrence is one of tanh, whose weights are W / 2, U / 4
    and whose bias is (b + c + U 1 / 2) / 2. The parameters are those of the sigmoid recurrence, and gradients
    reach them through these expressions.
    """

    def __init__(self, inputs: int, hidden: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.rnn = nn.RNN(inputs, hidden, batch_first=True, bidirectional=bidirectional)

    def _weights(self) -> dict[str, Tensor]:
        own = dict(self.rnn.named_parameters())
        out = {}
        for end in ("_l0", "_l0_reverse") if self.rnn.bidirectional else ("_l0",):
            recurrent = own[f"weight_hh{end}"]
            out[f"weight_ih{end}"] = own[f"weight_ih{end}"] / 2
            out[f"weight_hh{end}"] = recurrent / 4
            out[f"bias_ih{end}"] = own[f"bias_ih{end}"] / 2
            out[f"bias_hh{end}"] = own[f"bias_hh{end}"] / 2 + recurrent.sum(1) / 4
        return out

    def forward(self, x: Any, state: Tensor, length: Tensor | None = None) -> tuple[Any, Tensor]:
        """As `nn.RNN`: inputs, packed or (B, T, in), and h (directions, B, H) to the states and the last h.

        length: (B,) of padded rows, see `padded`.
        """
        if length is None:
            y, last = functional_call(self.rnn, self._weights(), (x, 2 * state - 1))
        else:
            y, last = padded(self.rnn, x, (2 * state - 1,), length, self._weights())
        half = y._replace(data=(y.data + 1) / 2) if isinstance(y, PackedSequence) else (y + 1) / 2
        return half, (last + 1) / 2


def _layer(cell: Cell, nonlinearity: Nonlinearity, inputs: int, hidden: int, bidirectional: bool) -> nn.Module:
    layer: nn.Module
    if cell == "elman" and nonlinearity == "sigmoid":
        layer = SigmoidRNN(inputs, hidden, bidirectional=bidirectional)
    elif cell == "elman":
        layer = nn.RNN(inputs, hidden, nonlinearity=nonlinearity, batch_first=True, bidirectional=bidirectional)
    else:
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        layer = kind(inputs, hidden, batch_first=True, bidirectional=bidirectional)
    for name, weight in layer.named_parameters():
        if "weight_hh" in name:  # each gate a rotation: states neither fade nor explode at the start
            for gate in torch.split(weight.data, hidden):
                nn.init.orthogonal_(gate)
        elif "weight_ih" in name:
            for gate in torch.split(weight.data, hidden):
                nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(weight)
            if cell == "lstm" and "bias_ih" in name:
                weight.data[hidden : 2 * hidden] = 1.0  # remember, until taught to forget
    return layer


class Recurrent(nn.Module):
    """Layers of one cell: (B, T, in) with lengths -> (B, T, H * directions) and the last states."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        cell: Cell = "gru",
        nonlinearity: Nonlinearity = "sigmoid",
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        directions = 2 if bidirectional else 1
        self.cell, self.hidden, self.directions = cell, hidden, directions
        self.size = hidden * directions
        sizes = [inputs] + [self.size] * (num_layers - 1)
        self.layers = nn.ModuleList(_layer(cell, nonlinearity, size, hidden, bidirectional) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def begin(self, rows: int, like: Tensor) -> State:
        """The state before the first step: zeros."""
        zeros = like.new_zeros(self.directions, rows, self.hidden)
        return [(zeros,) * (2 if self.cell == "lstm" else 1) for _ in self.layers]

    def forward(self, x: Tensor, length: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: (B, T, in); length: (B,) on the CPU, each 1 or more; state: what an earlier call returned.

        Returns the states of the last layer, zeros beyond a row's length, and the state after each row's last step
        (of an LSTM that learns from padded rows on a CPU, h alone: nothing goes on from there).
        """
        state = self.begin(len(x), x) if state is None else state
        steps = x.shape[1]
        if not len(x):
            return x.new_zeros(0, steps, self.size), state
        whole = bool((length == steps).all())
        learning = not whole and x.device.type == "cpu" and torch.is_grad_enabled()
        y: Any = x if whole or learning else pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
        last: State = []
        for number, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            if number and self.training and self.dropout.p:
                y = y._replace(data=self.dropout(y.data)) if isinstance(y, PackedSequence) else self.dropout(y)
            if learning:
                y, h = (
                    layer(y, before[0], length) if isinstance(layer, SigmoidRNN) else padded(layer, y, before, length)  # type: ignore[arg-type]
                )
                last.append((h,))
            else:
                y, after = layer(y, before if self.cell == "lstm" else before[0])
                last.append(after if self.cell == "lstm" else (after,))
        if learning:
            beyond = torch.arange(steps) >= length[:, None]
            y = y.masked_fill(beyond[..., None], 0.0)
        elif not whole:
            y = pad_packed_sequence(y, batch_first=True, total_length=steps)[0]
        return y, last


class Pooling(nn.Module):
    """One vector of a row's states, (B, T, H) -> (B, H): the last, their mean, largest, or a mean weighted by attention.

    Attention: softmax over the steps of v tanh(W h) (arXiv:1409.0473 with a fixed query).
    """

    def __init__(self, kind: Literal["last", "mean", "max", "attention"], size: int) -> None:
        super().__init__()
        self.kind = kind
        self.score = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1)) if kind == "attention" else None

    def forward(self, states: Tensor, last: State, length: Tensor) -> Tensor:
        if self.kind == "last":
            h = last[-1][0]  # (directions, B, H): forward after the last step, backward after the first
            return torch.cat(tuple(h), dim=1)
        length = length.to(states.device)
        if self.kind == "mean":
            return states.sum(1) / length[:, None]  # beyond the length there are zeros
        inside = torch.arange(states.shape[1], device=states.device) < length[:, None]
        if self.score is None:
            return states.masked_fill(~inside[..., None], -torch.inf).amax(1)
        weights = self.score(states)[..., 0].masked_fill(~inside, -torch.inf).softmax(1)
        pooled: Tensor = (weights[..., None] * states).sum(1)
        return pooled


def embeddings(cardinalities: Sequence[int], size: int | None) -> nn.ModuleList:
    """An embedding for each, of a size by its number of indices unless given."""
    out = nn.ModuleList()
    for cardinality in cardinalities:
        width = size or min(32, round(1.6 * cardinality**0.56))
        embedding = nn.Embedding(cardinality, width)
        nn.init.normal_(embedding.weight, std=width**-0.5)
        out.append(embedding)
    return out
