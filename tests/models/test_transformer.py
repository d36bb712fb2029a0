"""The Transformer: attention as the formula says, what a position sees, shapes, the cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_lm import SHAPES, small
from torch import Tensor

from seekray.models.transformer import Attention, Transformer, TransformerConfig, sinusoids


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_the_formula() -> None:
    x = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 4)
    w_q = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]], dtype=torch.float64)
    w_k, w_v, w_o = (torch.randn(*shape, dtype=torch.float64) for shape in ((4, 2), (4, 2), (2, 4)))
    layer = Attention(TransformerConfig(hidden_size=4, num_heads=1, head_size=2)).double()
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([w_q, w_k, w_v], dim=1).T)
        layer.out.weight.copy_(w_o.T)
        q = layer.project(x[None])[0]
        expected = torch.tensor([[5, 6], [11.4, 14], [17.8, 22]], dtype=torch.float64)
        torch.testing.assert_close(q[0, 0], expected)
        for causal in (False, True):
            scores = x @ w_q @ (x @ w_k).T / math.sqrt(2)
            if causal:
                scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
            written_out = scores.exp() / scores.exp().sum(1, keepdim=True) @ (x @ w_v) @ w_o
            torch.testing.assert_close(layer(x[None], causal=causal)[0], written_out)


def test_heads_and_groups_are_the_formula() -> None:
    config = TransformerConfig(hidden_size=12, num_heads=6, num_kv_heads=2)
    layer, x = Attention(config).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.project(x)
    heads = [
        torch.softmax(q[:, h] @ k[:, h // 3].transpose(1, 2) / math.sqrt(2), dim=-1) @ v[:, h // 3] for h in range(6)
    ]  # head h shares the keys and values of group h // 3
    torch.testing.assert_close(layer(x, causal=False), layer.out(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("model", SHAPES, ids=lambda m: "-".join(map(str, m.values())))
def test_no_position_sees_a_later_one(model: dict[str, Any]) -> None:
    net, given = small(**model).double(), tokens(2, 9)
    changed = given.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 40
    before, after = net(given), net(changed)
    assert before.shape == (2, 9, 40)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert (before[:, 5] - after[:, 5]).abs().max() > 1e-3
    both = net(changed, causal=False) - net(given, causal=False)
    assert both[:, 0].abs().max() > 1e-6  # without the mask the first position sees the last


def test_padding_changes_no_answer() -> None:
    net, given = small().double(), tokens(2, 9)
    padded = net(given, causal=False, lengths=torch.tensor([9, 4]))
    torch.testing.assert_close(padded[1, :4], net(given[1:, :4], causal=False)[0], rtol=0, atol=1e-12)


def test_sources_sizes() -> None:
    config = TransformerConfig(
        vocab_size=1000, hidden_size=256, num_heads=4, num_layers=2, position="sinusoidal", norm="layer", norm_first=False,
        ffn="relu", bias=True, tie_embeddings=False,
    )  # fmt: skip
    net = Transformer(config)
    assert net(torch.randint(1000, (2, 50))).shape == (2, 50, 1000)
    block = 4 * 256 * 256 + 4 * 256 + 2 * 4 * 256 * 256 + 5 * 256 + 4 * 256
    assert sum(p.numel() for p in net.parameters()) == 2 * 1000 * 256 + 2 * block


def test_sinusoids() -> None:
    waves = sinusoids(50, 8)
    assert waves[7, 2] == pytest.approx(math.sin(7 / 10_000 ** (2 / 8)))
    assert waves[7, 3] == pytest.approx(math.cos(7 / 10_000 ** (2 / 8)))


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for on in (False, True):
        net = small().double().requires_grad_().train()
        net.checkpointing = on
        net(tokens(2, 8)).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden_size": 30}, "expected a multiple of model.num_heads"),
        ({"num_kv_heads": 3}, "expected a divisor of model.num_heads"),
        ({"hidden_size": 12}, "rope turns pairs of channels"),
    ],
)
def test_impossible_shapes(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TransformerConfig(**model)


def test_room() -> None:
    net = small()
    with pytest.raises(ValueError, match="17 positions given, there is room for 16"):
        net(tokens(1, 17))
