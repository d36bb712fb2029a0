"""Training `lm`: beside a plain PyTorch loop of the same network, and transformers' Llama of the same shape; memory.

    python -m benchmarks.training_lm [--rounds 3] [--steps 12] [--json]

5.3 million parameters (6 layers of 256, 8 heads, SwiGLU of 688, vocabulary 2,048), 16 x 128 tokens a step, fused AdamW,
float32, one thread, no clipping. Rounds alternate; a step is CPU seconds from its begin to the next one's, the first three
left out, and a ratio the median of the rounds'. Targets: 0.97 of the plain loop, 1.0 of Llama. Memory is the largest
resident set of a process that trains, ours less the plain loop's: at most 300 MB more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.in_process import Silent
from seekray import loop
from seekray.config import Experiment
from seekray.data.batches import Batch
from seekray.data.prepared import Prepared
from seekray.models.transformer import Transformer, TransformerConfig
from seekray.session import LocalSession
from seekray.storage import Storage

ROWS, CONTEXT, FIRST = 16, 128, 3
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "num_layers": 6, "num_heads": 8, "intermediate_size": 688, "vocab_size": 2048,
    "context_length": CONTEXT,
}  # fmt: skip


def experiment(source: Path, steps: int) -> Experiment:
    """The measured run."""
    split = {"kind": "last", "test": 0, "validation": 0}
    return Experiment.model_validate(
        {
            "name": "bench", "family": "lm", "task": "pretrain", "data": {"source": str(source), "split": split},
            "model": SHAPE, "training": {"max_steps": steps, "batch_size": ROWS}, "resources": {"workers": 0},
        }
    )  # fmt: skip


class Timed(LocalSession):
    """Notes the CPU time at each step's begin."""

    def begin(self, batch: Batch) -> None:
        """As ever."""
        TIMES.append(time.process_time())
        super().begin(batch)


TIMES: list[float] = []


def ours(given: Experiment, prepared: Prepared) -> float:
    """CPU seconds a step of the platform's loop."""
    TIMES.clear()
    with tempfile.TemporaryDirectory() as folder:
        session = Timed(given.training, Storage(folder), listener=Silent())
        loop.run(given, session, prepared.schema, prepared.train, prepared.validation)
    return (TIMES[-1] - TIMES[FIRST]) / (len(TIMES) - 1 - FIRST)


def plain(model: Any, logits: Any, tokens: torch.Tensor, steps: int) -> float:
    """CPU seconds a step of the loop that anyone would write: random windows, cross-entropy, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    times = []
    for step in range(steps):
        times.append(time.process_time())
        starts = torch.randint(0, len(tokens) - CONTEXT - 1, (ROWS,))
        windows = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts.tolist()])
        loss = F.cross_entropy(logits(model, windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            loss.item()
    return (times[-1] - times[FIRST]) / (len(times) - 1 - FIRST)


def network() -> Transformer:
    """The same network as ours."""
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**SHAPE))


def llama() -> Any:
    """transformers' Llama of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=8, intermediate_size=688, vocab_size=2048,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def write_text(path: Path) -> None:
    """Words drawn by Zipf's law: enough for a vocabulary of 2,048."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(2, 9))) for _ in range(4000)]
    picks = np.minimum(rng.zipf(1.3, 300_000) - 1, 3999)
    path.write_text(" ".join(words[i] + ("\n" if n % 12 == 0 else "") for n, i in enumerate(picks)))


def memory(what: str, folder: Path) -> float:
    """The largest resident set, in MB, of a process that trains for a few steps."""
    command = [sys.executable, "-m", "benchmarks.training_lm", "--memory", what, "--folder", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _measured(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    prepared = experiment(folder / "text.txt", 8).prepare()  # both read the same, so that it cancels out
    if what == "ours":
        ours(experiment(folder / "text.txt", 8), prepared)
    else:
        stream = prepared.train.read(0, prepared.train.size)  # type: ignore[attr-defined]
        plain(network(), lambda m, x: m(x), torch.from_numpy(stream), 8)
    # Not ru_maxrss: a child begins with its parent's.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 / 1e6)


def main() -> int:
    """Measure and print; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        _measured(given.memory, given.folder)
        return 0
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"ours": [], "plain": [], "llama": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEEKRAY_HOME"] = folder
        source = Path(folder, "text.txt")
        write_text(source)
        measured = experiment(source, given.steps)
        prepared = measured.prepare()
        tokens = torch.from_numpy(prepared.train.read(0, prepared.train.size))  # type: ignore[attr-defined]
        for _ in range(given.rounds):
            found["plain"].append(plain(network(), lambda m, x: m(x), tokens, given.steps))
            found["ours"].append(ours(measured, prepared))
            found["llama"].append(plain(llama(), lambda m, x: m(input_ids=x).logits, tokens, given.steps))
        resident = {what: memory(what, Path(folder)) for what in ("plain", "ours")}
    ratios = {
        other: statistics.median(t / o for t, o in zip(found[other], found["ours"], strict=True))
        for other in ("plain", "llama")
    }
    more = resident["ours"] - resident["plain"]
    parameters = sum(p.numel() for p in network().parameters())
    result = {"seconds": found, "ratios": ratios, "resident_mb": resident, "more_mb": more, "parameters": parameters}
    if given.json:
        print(json.dumps(result | {"load": os.getloadavg()}, indent=1))
    else:
        print(f"{parameters:,} parameters, {ROWS} x {CONTEXT} tokens, vocabulary {prepared.schema.num_outputs}")
        for name, values in found.items():
            print(f"{name:6} {statistics.median(values):.3f} CPU s a step   ({', '.join(f'{v:.3f}' for v in values)})")
        print(f"against plain {ratios['plain']:.3f} (target 0.97), against Llama {ratios['llama']:.3f} (target 1.0)")
        print(f"resident set {resident['ours']:.0f} MB, plain {resident['plain']:.0f} MB: {more:+.0f} MB (target at most +300)")
        print(f"load average {os.getloadavg()[0]:.1f}")
    return int(ratios["plain"] < 0.97 or ratios["llama"] < 1.0 or more > 300)


if __name__ == "__main__":
    sys.exit(main())
