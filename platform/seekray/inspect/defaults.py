"""The settings that `seekray init` writes: rules by rows, features and task, measured by `benchmarks/init_defaults.py`."""

from __future__ import annotations

from dataclasses import dataclass

SMALL_ROWS = 2_000
TINY_ROWS = 600


@dataclass(frozen=True)
class Defaults:
    """What is written into the file. A string of YAML a value, and why, for the comments."""

    validation: float
    model: dict[str, str]
    training: dict[str, str]
    why: str


def choose(rows: int, task: str, features: int) -> Defaults:
    """Settings for a table of so many rows (all of them, the test's fifth included)."""
    smoothing = {"label_smoothing": "0.05"} if task != "regression" else {}
    if rows <= SMALL_ROWS:
        return Defaults(
            validation=0.0,
            model={"hidden_size": "[64]", "activation": "silu", "dropout": "0.2", **smoothing},
            training={
                "epochs": "150" if rows <= TINY_ROWS else "100",
                "batch_size": "32",
                "optimizer": "adamw",
                "lr": "0.003",
                "weight_decay": "0.1",
                "schedule": "{kind: one-cycle}",
            },
            why="a small table: regularised, and a fixed number of epochs, since a handful of validation rows tells little",
        )
    batch = 64 if rows <= 20_000 else 256 if rows <= 200_000 else 1024
    epochs = 60 if rows <= 20_000 else 30 if rows <= 200_000 else 10
    return Defaults(
        validation=0.1,
        model={"hidden_size": "[256, 256]", "activation": "relu", "norm": "batch", "dropout": "0.1", **smoothing},
        training={
            "epochs": str(epochs),
            "batch_size": str(batch),
            "optimizer": "adamw",
            "lr": "0.003",
            "weight_decay": "0.01",
            "schedule": "{kind: one-cycle}",
            "early_stopping": f"{{patience: {max(5, epochs // 3)}}}",
        },
        why="the epoch with the best validation loss is kept",
    )
