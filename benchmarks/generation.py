"""Making tokens: our texts beside `transformers.generate` with its cache, the same weights, greedy, float32 on the CPU.

    python -m benchmarks.generation [--rounds 5] [--threads 1 2] [--json]

A Llama of 5.3 million parameters (256 wide, 6 layers, 8 heads, 688 inside, 2,048 entries), prompts of 16 tokens, 64 new
tokens. Every round makes them with both, one after the other; the ratios are medians of the rounds' ratios, so that a
busy machine hits both sides. Both must make the same tokens. Targets: 2.0 at batch 1, 1.5 at batch 16, for the number of
threads that is better for `transformers`. `products` is what the matrix products alone take, as torch's `linear` does them.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from seekray.models.llama import to_llama, weights_to_llama
from seekray.models.texts import TextRequest, table
from seekray.models.transformer import Transformer, TransformerConfig

PROMPT, NEW, VOCABULARY = 16, 64, 2048
TARGETS = {1: 2.0, 16: 1.5}
CONFIG = TransformerConfig(
    hidden_size=256, num_layers=6, num_heads=8, intermediate_size=688, vocab_size=VOCABULARY, context_length=512
)


class Numbers:
    """A tokenizer of nothing: the benchmark is of tokens."""

    end = -1

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Not used."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Numbers, as a text."""
        return " ".join(map(str, ids)) + " "


def ours(net: Transformer, prompts: list[list[int]]) -> list[list[int]]:
    """New tokens of each prompt."""
    request = TextRequest(prompts=tuple(map(tuple, prompts)), temperature=0, max_tokens=NEW)
    texts = table(net, Numbers(), request, prompts).column("text").to_pylist()
    return [[int(t) for t in text.split()] for text in texts]


def theirs(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The same by `transformers`."""
    tokens = torch.tensor(prompts)
    made = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=True
    )
    new: list[list[int]] = made[:, PROMPT:].tolist()
    return new


def products(net: Transformer, prompts: list[list[int]]) -> None:
    """The matrix products of `NEW` tokens and nothing else."""
    weights = [p for name, p in net.named_parameters() if p.ndim == 2]
    inputs = {p.shape[1]: torch.randn(len(prompts), p.shape[1]) for p in weights}
    with torch.inference_mode():
        for _ in range(NEW):
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)


def timed(make: Callable[..., Any], *given: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    make(*given)
    return time.perf_counter() - began


def measure(rounds: int, threads: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens/s and ratios for each batch and number of threads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    net = Transformer(CONFIG).eval().requires_grad_(False)
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**to_llama(CONFIG, VOCABULARY), **none)).eval()
    model.load_state_dict(weights_to_llama(net.state_dict(), CONFIG), strict=False)
    model.tie_weights()
    rows = []
    for batch, target in TARGETS.items():
        prompts = torch.randint(1, VOCABULARY, (batch, PROMPT)).tolist()
        same = sum(a == b for a, b in zip(ours(net, prompts), theirs(model, prompts), strict=True))
        for count in threads:
            torch.set_num_threads(count)
            ours(net, prompts)
            theirs(model, prompts)  # both are warm
            seconds = [
                (timed(ours, net, prompts), timed(theirs, model, prompts), timed(products, net, prompts)) for _ in range(rounds)
            ]
            speed = [batch * NEW / statistics.median(column) for column in zip(*seconds, strict=True)]
            rows.append({
                "batch": batch, "threads": count, "ours": speed[0], "transformers": speed[1], "products": speed[2],
                "ratio": statistics.median(b / a for a, b, _ in seconds), "target": target, "same": f"{same} of {batch}",
            })  # fmt: skip
    return rows


def main() -> int:
    """Exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = measure(given.rounds, sorted(set(given.threads)))
    met = True
    for batch in TARGETS:
        best = max((r for r in rows if r["batch"] == batch), key=lambda r: r["transformers"])
        best["met"] = best["ratio"] >= best["target"]
        met &= best["met"]
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        for r in rows:
            verdict = f"target {r['target']}: {'met' if r['met'] else 'missed'}" if "met" in r else ""
            speeds = f"{r['ours']:7,.0f} tokens/s, transformers {r['transformers']:7,.0f}, products alone {r['products']:7,.0f}"
            print(
                f"batch {r['batch']:>2}, {r['threads']} threads: {speeds}, ratio {r['ratio']:.2f} {verdict} (same: {r['same']})"
            )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
