"""The decoder gives the module's logits: every shape, prompts of several lengths, in parts, blocks in any order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_lm import SHAPES, small
from torch import Tensor

from seekray.models.decoding import Decoder, Run, Weights
from seekray.models.transformer import Transformer


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (n,), generator=generator).tolist() for n in lengths]


def plainly(net: Transformer, sequences: list[list[int]]) -> Tensor:
    """Logits of each one's next token by the module, alone and without a cache."""
    return torch.stack([net(torch.tensor([s]))[0, -1] for s in sequences])


class Sequences:
    """Sequences with blocks of their own, in no order, run by a decoder."""

    def __init__(self, net: Transformer, size: int = 4) -> None:
        self.decoder = Decoder(Weights.of(net), 40, size)
        self.free = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
        self.tables: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}

    def run(self, **tokens: list[int]) -> Tensor:
        """The next tokens of sequences by their numbers (`_3=[…]`), as logits after each."""
        runs = []
        for name, more in tokens.items():
            key = int(name[1:])
            table, start = self.tables.setdefault(key, []), self.computed.setdefault(key, 0)
            while len(table) * self.decoder.size < start + len(more):
                table.append(self.free.pop())
            runs.append(Run(more, start, table))
            self.computed[key] = start + len(more)
        return self.decoder(runs)


def close(logits: Tensor, net: Transformer, sequences: list[list[int]]) -> None:
    torch.testing.assert_close(logits, plainly(net, sequences), rtol=0, atol=3e-5)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("model", SHAPES, ids=lambda m: "-".join(map(str, m.values())))
def test_logits_are_the_modules(model: dict[str, Any], heads: int) -> None:
    """Prompts whole and in parts, beside sequences that grow; lengths so different that they are read in groups."""
    net = small(**model, num_kv_heads=heads)
    a, b, c, d = prompts(3, 13, 1, 9)
    made = Sequences(net)
    with torch.inference_mode():
        close(made.run(_0=a, _1=b[:5], _2=c), net, [a, b[:5], c])
        close(made.run(_1=b[5:7], _0=[7], _2=[8]), net, [b[:7], [*a, 7], [*c, 8]])
        close(made.run(_3=d, _2=[9], _1=b[7:]), net, [d, [*c, 8, 9], b])  # the prompts are at either end
        close(made.run(_2=[1], _1=[2], _3=[3]), net, [[*c, 8, 9, 1], [*b, 2], [*d, 3]])
        close(made.run(_1=[4], _2=[5]), net, [[*b, 2, 4], [*c, 8, 9, 1, 5]])


def test_a_block_is_shared_in_the_step_that_fills_it() -> None:
    net = small()
    (first,) = prompts(8)
    decoder = Decoder(Weights.of(net), 4, 4)
    with torch.inference_mode():
        logits = decoder([Run(first, 0, [2, 0]), Run([5, 6], 4, [2, 3]), Run([9], 4, [2, 1])])
        close(logits, net, [first, [*first[:4], 5, 6], [*first[:4], 9]])


@pytest.mark.parametrize("rows", [1, 3, 4, 20])  # 1 to 3 by the transposed matrices, more by oneDNN's
def test_every_number_of_rows(rows: int) -> None:
    net = small(bias=True)
    made, sequences = Sequences(net, size=16), prompts(*[5] * rows)
    with torch.inference_mode():
        made.run(**{f"_{i}": s for i, s in enumerate(sequences)})
        close(made.run(**{f"_{i}": [7] for i in range(rows)}), net, [[*s, 7] for s in sequences])


def test_half_precision_runs() -> None:
    net = small().bfloat16()
    made, (a, b) = Sequences(net), prompts(5, 3)
    with torch.inference_mode():
        made.run(_0=a, _1=b)
        logits = made.run(_0=[7], _1=[8])
        expected = plainly(net.float(), [[*a, 7], [*b, 8]])
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_room() -> None:
    decoder = Decoder(Weights.of(small()), 5, 4)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="17 tokens given, there is room for 16"):
            decoder([Run(prompts(17)[0], 0, [0, 1, 2, 3, 4])])
        with pytest.raises(ValueError, match="in 1 blocks of 4"):
            decoder([Run([1], 4, [0])])
