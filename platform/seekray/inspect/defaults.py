"""The settings that `seekray init` writes: rules by rows, task and shape, measured by `benchmarks/init_defaults.py`."""

from __future__ import annotations

from dataclasses import dataclass

from seekray.inspect.probe import Shape

SMALL_ROWS = 2_000
TINY_ROWS = 600
PROBED_ROWS = 10_000
# A gain in leave-one-out R² (of 1,000 rows) below this is no reason for hidden layers; with more rows to learn from, less is.
CURVED, CURVED_LARGE = 0.03, 0.005


@dataclass(frozen=True)
class Defaults:
    """What is written into the file: values as YAML, and why, for the comments."""

    validation: float
    model: dict[str, str]
    training: dict[str, str]
    why_split: str
    why_model: str


def choose(rows: int, task: str, shape: Shape | None, *, pictures: bool = False) -> Defaults:
    """Settings for a table of so many rows (the test's fifth included). shape: None where it was not probed."""
    if pictures:
        return _pictures(rows)
    small = rows <= SMALL_ROWS
    if shape is not None and shape.curved - shape.linear < (CURVED if small else CURVED_LARGE):
        return _linear(rows, task, shape)
    return _small(rows, task, shape) if small else _large(rows, task)


NO_VALIDATION = "a small table: a fixed number of epochs and all other rows for training; a handful to stop by tells little"


def _linear(rows: int, task: str, shape: Shape) -> Defaults:
    return Defaults(
        validation=0.0,
        model={"hidden_size": "[]"},
        training={
            "epochs": "300" if rows <= TINY_ROWS else "100" if rows <= SMALL_ROWS else "30",
            "batch_size": "32",
            "optimizer": "adamw",
            "lr": "0.01",
            "weight_decay": "0.1" if task == "regression" else "0.5",
            "schedule": "{kind: one-cycle}",
        },
        why_split=NO_VALIDATION
        if rows <= SMALL_ROWS
        else "nothing to stop early or to choose: all other rows are for training",
        why_model=(
            f"a linear model: on rows left out, straight lines explain {_share(shape.linear)} of the target and curves "
            f"{_share(shape.curved)}; hidden layers would learn the noise. To try them: hidden_size: [128, 128], dropout: 0.1"
        ),
    )


def _pictures(rows: int) -> Defaults:
    return Defaults(
        validation=0.0 if rows <= SMALL_ROWS else 0.1,
        model={"stem": "conv", "hidden_size": "[128]", "norm": "batch", "dropout": "0.3"},
        training={
            "epochs": "40" if rows <= SMALL_ROWS else "15",
            "batch_size": "64",
            "optimizer": "adamw",
            "lr": "0.004",
            "schedule": "{kind: one-cycle}",
        },
        why_split=NO_VALIDATION if rows <= SMALL_ROWS else "the weights of the epoch with the least validation loss are kept",
        why_model="pictures go through a small convolutional network first; stem_shift: 2 shows each moved by up to 2 pixels, "
        "which helps where they are not all in the middle of their frame",
    )


def _share(r2: float) -> str:
    return f"{max(0.0, r2):.0%}"


def _small(rows: int, task: str, shape: Shape | None) -> Defaults:
    seen = ""
    if shape is not None:
        seen = f"; on rows left out, curves explain {_share(shape.curved)} of the target, straight lines {_share(shape.linear)}"
    regression = task == "regression"
    return Defaults(
        validation=0.0,
        model={
            "hidden_size": "[128, 128]",
            "activation": "silu",
            "dropout": "0.1" if regression else "0.2",
            **({} if regression else {"label_smoothing": "0.1"}),
        },
        training={
            "epochs": ("200" if rows <= TINY_ROWS else "100") if regression else ("100" if rows <= TINY_ROWS else "60"),
            "batch_size": "32",
            "optimizer": "adamw",
            "lr": "0.003",
            "weight_decay": "0.5",
            "schedule": "{kind: one-cycle}",
        },
        why_split=NO_VALIDATION,
        why_model=f"a network held back by dropout and weight decay{seen}",
    )


def _large(rows: int, task: str) -> Defaults:
    batch = 64 if rows <= 20_000 else 256 if rows <= 200_000 else 1024
    epochs = 60 if rows <= 20_000 else 30 if rows <= 200_000 else 10
    return Defaults(
        validation=0.1,
        model={
            "hidden_size": "[256, 256]",
            "activation": "silu",
            "dropout": "0.1",
            **({} if task == "regression" else {"label_smoothing": "0.05"}),
        },
        training={
            "epochs": str(epochs),
            "batch_size": str(batch),
            "optimizer": "adamw",
            "lr": "0.002",
            "weight_decay": "0.1",
            "schedule": "{kind: one-cycle}",
            "early_stopping": f"{{patience: {max(5, epochs // 3)}}}",
        },
        why_split="the weights of the epoch with the least validation loss are kept",
        why_model="a network with some dropout and weight decay",
    )
