"""The decoder gives the module's logits: every shape, prompts of several lengths, sequences that come and go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_lm import SHAPES, small
from torch import Tensor

from seekray.models.decoding import Decoder, Weights
from seekray.models.transformer import Transformer


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (n,), generator=generator).tolist() for n in lengths]


def plainly(net: Transformer, sequences: list[list[int]]) -> Tensor:
    """Logits of each one's next token by the module, alone and without a cache."""
    return torch.stack([net(torch.tensor([s]))[0, -1] for s in sequences])


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("model", SHAPES, ids=lambda m: "-".join(map(str, m.values())))
def test_logits_are_the_modules(model: dict[str, Any], heads: int) -> None:
    net = small(**model, num_kv_heads=heads)
    decoder = Decoder(Weights(net), rows=5, size=16)
    sequences = prompts(3, 9, 1)
    with torch.inference_mode():
        logits = decoder.add(sequences)
        torch.testing.assert_close(logits, plainly(net, sequences), rtol=0, atol=3e-5)
        for step in range(6):
            if step == 2:  # one more, twice
                more = prompts(6, seed=1)
                torch.testing.assert_close(decoder.add(more, copies=[2]), plainly(net, more * 2), rtol=0, atol=3e-5)
                sequences += [list(more[0]), list(more[0])]
            if step == 4:  # one goes, the last takes its row
                decoder.drop(1)
                sequences[1] = sequences.pop()
            following = prompts(*[1] * len(sequences), seed=step + 5)
            sequences = [s + t for s, t in zip(sequences, following, strict=True)]
            logits = decoder.step([t for (t,) in following])
            torch.testing.assert_close(logits, plainly(net, sequences), rtol=0, atol=3e-5)
    assert decoder.lengths == [len(s) for s in sequences]


@pytest.mark.parametrize("rows", [1, 3, 4, 20])  # 1 to 3 by the transposed matrices, more by oneDNN's
def test_every_number_of_rows(rows: int) -> None:
    net = small(bias=True)
    decoder, sequences = Decoder(Weights(net), rows=rows, size=16), prompts(*[5] * rows)
    with torch.inference_mode():
        decoder.add(sequences)
        logits = decoder.step([7] * rows)
        torch.testing.assert_close(logits, plainly(net, [[*s, 7] for s in sequences]), rtol=0, atol=3e-5)


def test_half_precision_runs() -> None:
    net = small().bfloat16()
    decoder, sequences = Decoder(Weights(net), rows=2, size=16), prompts(5, 3)
    with torch.inference_mode():
        decoder.add(sequences)
        logits = decoder.step([7, 8])
        expected = plainly(net.float(), [[*sequences[0], 7], [*sequences[1], 8]])
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_room() -> None:
    decoder = Decoder(Weights(small()), rows=2, size=6)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="up to 7 tokens given, expected 1 to 6"):
            decoder.add(prompts(7))
        decoder.add(prompts(6, 2))
        with pytest.raises(ValueError, match="expected 1 to 6 in free rows"):
            decoder.add(prompts(1))
        with pytest.raises(ValueError, match="has 6 tokens, there is room for 6"):
            decoder.step([1, 1])
