"""DeepSeek-Rec: the recurrence against NumPy, padding, pooling, states that are carried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seekray.models.rec import cropped
from seekray.models.recurrent import Pooling, Recurrent

CELLS = [("elman", "sigmoid"), ("elman", "tanh"), ("elman", "relu"), ("gru", "tanh"), ("lstm", "tanh")]
cells = pytest.mark.parametrize(("cell", "nonlinearity"), CELLS)


def _numpy_elman(w: dict[str, Any], x: Any, target: Any) -> tuple[Any, Any, dict[str, Any]]:
    """States, loss and gradients of h_t = sigmoid(W x_t + b + U h_{t-1} + c), loss = sum (h - target)^2 / 2."""
    steps, hidden = len(x), len(w["b"])
    states = [np.zeros(hidden)]
    for t in range(steps):
        z = w["W"] @ x[t] + w["b"] + w["U"] @ states[-1] + w["c"]
        states.append(1 / (1 + np.exp(-z)))
    loss = sum(((h - y) ** 2).sum() / 2 for h, y in zip(states[1:], target, strict=True))
    grads = {k: np.zeros_like(v) for k, v in w.items()} | {"x": np.zeros_like(x)}
    later = np.zeros(hidden)
    for t in reversed(range(steps)):  # backpropagation through time
        h = states[t + 1]
        dz = (h - target[t] + later) * h * (1 - h)
        grads["W"] += np.outer(dz, x[t])
        grads["U"] += np.outer(dz, states[t])
        grads["b"] += dz
        grads["c"] += dz
        grads["x"][t] = w["W"].T @ dz
        later = w["U"].T @ dz
    return np.array(states[1:]), loss, grads


def test_elman_sigmoid_is_the_recurrence_and_its_gradient_through_time() -> None:
    torch.manual_seed(0)
    net = Recurrent(3, 5, cell="elman", nonlinearity="sigmoid").double()
    rnn: Any = net.layers[0].rnn
    for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0):
        torch.nn.init.normal_(bias)
    names = {"W": rnn.weight_ih_l0, "U": rnn.weight_hh_l0, "b": rnn.bias_ih_l0, "c": rnn.bias_hh_l0}
    rng = np.random.default_rng(1)
    x, target = rng.normal(size=(17, 3)), rng.uniform(size=(17, 5))
    states, loss, grads = _numpy_elman({k: v.detach().numpy().copy() for k, v in names.items()}, x, target)
    given = torch.tensor(x[None], requires_grad=True)
    found, _ = net(given, torch.tensor([17]))
    assert np.abs(found[0].detach().numpy() - states).max() < 1e-12
    error = (found[0] - torch.tensor(target)).square().sum() / 2
    error.backward()
    assert abs(error.item() - loss) < 1e-9
    for name, parameter in names.items():
        assert np.abs(parameter.grad.numpy() - grads[name]).max() < 1e-6, name
    assert given.grad is not None
    assert np.abs(given.grad[0].numpy() - grads["x"]).max() < 1e-6


def _rows(lengths: list[int], channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(len(lengths), max(lengths), channels, generator=generator, dtype=torch.float64)
    return x, torch.tensor(lengths)


@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_alone_or_padded_the_states_are_the_same(cell: Any, nonlinearity: Any, bidirectional: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(3, 6, cell=cell, nonlinearity=nonlinearity, num_layers=2, bidirectional=bidirectional).double().eval()
    poolings = [Pooling(kind, net.size).double() for kind in ("last", "mean", "max", "attention")]
    x, length = _rows([9, 1, 4])
    states, last = net(x, length)
    assert states.shape == (3, 9, net.size)
    for row, steps in enumerate(length.tolist()):
        alone, own = net(x[row : row + 1, :steps], length[row : row + 1])
        assert torch.allclose(states[row, :steps], alone[0], atol=1e-12)
        for pooling in poolings:
            both = pooling(states, last, length)[row], pooling(alone, own, length[row : row + 1])[0]
            assert torch.allclose(*both, atol=1e-12), pooling.kind


@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_is_learned_from_padded_rows_is_what_packed_rows_teach(cell: Any, nonlinearity: Any, bidirectional: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(3, 6, cell=cell, nonlinearity=nonlinearity, num_layers=2, bidirectional=bidirectional).double()
    x, length = _rows([9, 1, 4])
    x.requires_grad_()

    def packed() -> tuple[Tensor, list[Tensor]]:
        y: Any = pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
        last = []
        for layer, before in zip(net.layers, net.begin(3, x), strict=True):
            y, after = layer(y, before if cell == "lstm" else before[0])
            last.append(after[0] if cell == "lstm" else after)
        return pad_packed_sequence(y, batch_first=True)[0], last

    def learned(states: Tensor, last: list[Tensor]) -> list[Tensor]:
        weights = torch.linspace(-1, 2, states.numel(), dtype=torch.float64).view_as(states)
        loss = (states * weights).sum() + sum(h.square().sum() for h in last)
        return [states, *last, *torch.autograd.grad(loss, [x, *net.parameters()])]

    states, last = net(x, length)
    both = zip(learned(states, [h[0] for h in last]), learned(*packed()), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in both)


@cells
def test_step_by_step_is_the_whole(cell: Any, nonlinearity: Any) -> None:
    torch.manual_seed(0)
    net = Recurrent(3, 6, cell=cell, nonlinearity=nonlinearity, num_layers=2).double().eval()
    x, length = _rows([7, 7])
    whole, last = net(x, length)
    state = net.begin(2, x)
    for t in range(7):
        one, state = net(x[:, t : t + 1], torch.ones(2, dtype=torch.int64), state)
        assert torch.allclose(one[:, 0], whole[:, t], atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for x, y in zip(state, last, strict=True) for a, b in zip(x, y, strict=True))


def test_bidirectional_last_is_the_end_of_each_direction() -> None:
    torch.manual_seed(0)
    net = Recurrent(3, 4, bidirectional=True).double()
    x, length = _rows([5, 3])
    states, last = net(x, length)
    pooled = Pooling("last", net.size)(states, last, length)
    assert torch.allclose(pooled[1], torch.cat([states[1, 2, :4], states[1, 0, 4:]]), atol=1e-12)


def test_a_crop_is_a_stretch_of_each_row() -> None:
    torch.manual_seed(0)
    length = torch.tensor([40, 31, 5])
    numbers = torch.arange(1, 41).expand(3, 40)
    inputs = {"symbols": torch.where(numbers <= length[:, None], numbers, 0)[..., None], "length": length}
    inputs |= {"sequence": inputs["symbols"].float(), "dense": torch.ones(3, 2)}
    shares, firsts = set(), set()
    for _ in range(200):
        got = cropped(inputs, 0.25, 8)
        assert got["dense"] is inputs["dense"]
        assert torch.equal(got["sequence"], got["symbols"].float())
        assert got["symbols"].shape[1] == got["length"].max()
        for row, (kept, whole) in enumerate(zip(got["length"].tolist(), length.tolist(), strict=True)):
            steps = got["symbols"][row, :kept, 0]
            assert torch.equal(steps, steps[0] + torch.arange(kept)), "steps that follow each other"
            assert min(whole, 8) <= kept
            assert whole / 4 <= kept
            assert steps[-1] <= whole
        shares.add(int(got["length"][0]))
        firsts.add(int(got["symbols"][0, 0, 0]))
    assert min(shares) <= 12 < 38 <= max(shares)
    assert len(firsts) > 15
