"""Products by oneDNN are those of torch, with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seekray.models.products import Linear, linear


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (1, 12), (0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(9, 12, generator=generator)
    given = [x, weight, *([torch.randn(9, generator=generator)] if bias else [])]
    found: list[list[Tensor]] = []
    for product in (linear, F.linear):
        leaves = [t.clone().requires_grad_() for t in given]
        out = product(*leaves)
        out.square().sum().backward()
        with torch.inference_mode():
            torch.testing.assert_close(product(*given), out.detach(), rtol=1e-5, atol=1e-5)
        found.append([out.detach(), *(t.grad for t in leaves if t.grad is not None)])
    assert len(found[0]) == len(given) + 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_gradient_that_is_one_number_spread_out() -> None:
    layer, x = Linear(12, 9), torch.randn(5, 12)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(9, 12))


def test_what_is_left_to_torch() -> None:
    layer = Linear(12, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 12)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(3, 12, dtype=torch.float64)).dtype == torch.float64
