"""Training of a generator against a plain PyTorch script of the same networks, loss and batch.

    python -m benchmarks.training_gen [--rounds 5] [--steps 400]

The plain script shuffles indices, draws its noise with `torch.randn`, takes the same WGAN-GP step with fused
Adam and measures nothing. Rounds alternate; the figure is the ratio of the best rounds, by CPU time, one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.in_process import fit
from benchmarks.quality_gen import ROOT
from seekray import experiment_file
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.models import get_family
from seekray.models.gen_networks import settle

ROWS = 20_000


def plain(experiment: Experiment, prepared: Prepared, steps: int) -> float:
    """CPU seconds of the script's steps."""
    torch.manual_seed(0)
    modules = get_family("gen").build(experiment.model, prepared.schema)
    generator: Any = modules["generator"]
    critic, config = modules["discriminator"], generator.config
    inputs = {k: torch.from_numpy(v) for k, v in prepared.train.inputs.items()}  # type: ignore[attr-defined]
    lr = experiment.training.lr
    optimizers = [torch.optim.Adam(m.parameters(), lr, (0.5, 0.9), fused=True) for m in (generator.network, critic)]
    rows, size, step, began = len(inputs["content"]), experiment.training.batch_size, 0, time.process_time()
    while step < steps:
        order = torch.randperm(rows)
        for start in range(0, rows, size):
            index = order[start : start + size]
            condition, real = inputs["condition"][index], inputs["content"][index]
            its_turn = (step + 1) % config.discriminator_steps == 0
            with torch.set_grad_enabled(its_turn):
                raw = generator.network(torch.randn(len(index), config.latent_size), condition)
                made = settle(raw, generator.spans, torch.rand(raw.shape), config.temperature) if generator.chooses else raw
            fake = made.detach()
            between = (fake + torch.rand(len(index), 1) * (real - fake)).requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(between, condition).sum(), between, create_graph=True)
            penalty = 10 * ((slope.square().sum(1) + 1e-12).sqrt() - 1).square()
            scores = critic(real, condition)
            loss = (critic(fake, condition) - scores + 1e-3 * scores.square() + penalty).mean()
            optimizers[1].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers[1].step()
            if its_turn:
                critic.requires_grad_(False)
                optimizers[0].zero_grad()
                (-critic(made, condition)).mean().backward()
                optimizers[0].step()
                critic.requires_grad_(True)
            step += 1
    return time.process_time() - began


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = ["resources.workers=0", f"training.max_steps={given.steps}", "training.epochs=null", "training.ema=null"]
    experiment = experiment_file.load(ROOT / "examples" / "breast-cancer-gen.yaml", changes)
    prepared = experiment.prepare()
    # Epochs of a usual length: what is done once an epoch is not what is measured.
    train: Any = prepared.train
    rows = np.arange(ROWS) % len(train)
    tiled = replace(train, inputs={k: v[rows] for k, v in train.inputs.items()}, rows=np.arange(ROWS))
    prepared = replace(prepared, train=tiled)
    ours, theirs = [], []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(fit(experiment, prepared, Path(folder))[1])
        theirs.append(plain(experiment, prepared, given.steps))
    rate = [given.steps * experiment.training.batch_size / min(t) for t in (ours, theirs)]
    ratio = rate[0] / rate[1]
    print(f"seekray {rate[0]:,.0f} rows/s, plain PyTorch {rate[1]:,.0f} rows/s by CPU time, ratio {ratio:.3f} (target 0.97)")


if __name__ == "__main__":
    main()
