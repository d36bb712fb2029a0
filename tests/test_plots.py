"""Figures: each is a PNG that shows what it was given, and drawing needs no display and no global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seekray import plots
from seekray.evaluation import Evaluation

HISTORY = [
    {"epoch": i + 1, "step": 9 * i, "lr": 0.01 / (i + 1), "train_loss": 2 / (i + 1), "validation_loss": 2.2 / (i + 1),
     "validation_accuracy": 1 - 0.5 / (i + 1), "seconds": 0.1}
    for i in range(12)
]  # fmt: skip


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        return np.asarray(image.convert("RGB")).astype(int)


def has(colour: str, image: Any) -> int:
    """Pixels of about that colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image - wanted).sum(2) < 30).sum())


def test_curves_show_train_and_validation(tmp_path: Path) -> None:
    both = pixels(plots.curves(HISTORY, tmp_path / "new" / "curves.png"))
    assert has(plots.BLUE, both) > 200
    assert has(plots.ORANGE, both) > 200
    alone = [{k: v for k, v in e.items() if not k.startswith("validation")} for e in HISTORY]
    assert has(plots.BLUE, pixels(plots.curves(alone, tmp_path / "alone.png"))) == 0
    one = pixels(plots.curves(HISTORY[:1], tmp_path / "one.png"))  # one epoch is a point, not an invisible line
    assert has(plots.BLUE, one) > 20
    pixels(plots.curves([], tmp_path / "none.png"))
    gaps = [{**e, "validation_loss": None} if i % 2 else e for i, e in enumerate(HISTORY)]
    pixels(plots.curves(gaps, tmp_path / "gaps.png"))


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_confusion_matrix_is_dark_on_the_diagonal_of_a_good_model(tmp_path: Path, classes: int) -> None:
    good = pixels(
        plots.confusion_matrix(np.diag([50] * classes).tolist(), [f"class {i}" for i in range(classes)], tmp_path / "a.png")
    )
    none = pixels(plots.confusion_matrix(np.zeros((classes, classes), int).tolist(), ["x"] * classes, tmp_path / "b.png"))
    assert has("#08306b", good) > 2 * has("#08306b", none)


def test_the_others_are_drawn_also_when_there_is_little_to_show(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(150, 40, 300)
    assert has(plots.BLUE, pixels(plots.residuals(target.tolist(), (target + 5).tolist(), tmp_path / "r.png"))) > 100
    pixels(plots.residuals([], [], tmp_path / "r0.png"))
    found = [{"feature": f"f{i}", "mean": 1 / (i + 1), "std": 0.01, "metric": "accuracy"} for i in range(40)]
    many = pixels(plots.importances(found, tmp_path / "i.png"))
    few = pixels(plots.importances(found[:3], tmp_path / "i3.png"))
    assert len(many) > len(few)
    pixels(plots.importances([], tmp_path / "i0.png"))
    bins = [{"count": 9, "confidence": 0.6, "accuracy": 0.5}, {"count": 20, "confidence": 0.9, "accuracy": 0.95}]
    assert has(plots.BLUE, pixels(plots.calibration(bins, tmp_path / "c.png", 0.04))) > 50
    pixels(plots.calibration([], tmp_path / "c0.png"))


def test_compare_runs_draws_both(tmp_path: Path) -> None:
    steps = {"validation_loss": [(e["step"], e["validation_loss"]) for e in HISTORY]}
    found = {
        "a": "run-a", "b": "run-b", "metrics": {"accuracy": {"a": 0.9, "b": 0.95}, "rmse": {"a": 50.0, "b": 40.0}},
        "history": {"a": steps, "b": steps | {"train_loss": [(1, 2.0)]}},
    }  # fmt: skip
    image = pixels(plots.compare_runs(found, tmp_path / "c.png"))
    assert has(plots.BLUE, image) > 500
    assert has(plots.ORANGE, image) > 500
    pixels(plots.compare_runs({"a": "x", "b": "y", "metrics": {}, "history": {"a": {}, "b": {}}}, tmp_path / "n.png"))


def test_result_draws_what_the_task_has(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "rows": 2, "rejected": 0, "intervals": {}, "notes": {}, "rejections": [], "groups": {},
        "outputs": torch.zeros(2, 1), "targets": torch.zeros(2, 1), "row_numbers": torch.arange(2),
    }  # fmt: skip
    classes = [{"class": "a"}, {"class": "b"}]
    bins = [{"count": 2, "confidence": 0.7, "accuracy": 0.5}]
    named = Evaluation(
        task="classification", metrics={"calibration_error": 0.2}, classes=classes, confusion=[[1, 0], [1, 0]],
        calibration=bins, residuals=None, **common,
    )  # fmt: skip
    assert [p.name for p in plots.result(named, tmp_path)] == ["calibration.png", "confusion_matrix.png"]
    numbers = Evaluation(
        task="regression", metrics={}, classes=[], confusion=None, calibration=[],
        residuals={"target": [1.0, 2.0], "prediction": [1.5, 2.0]}, **common,
    )  # fmt: skip
    assert [p.name for p in plots.result(numbers, tmp_path)] == ["residuals.png"]
    for name in ("calibration", "confusion_matrix", "residuals"):
        pixels(tmp_path / f"{name}.png")


def test_importing_is_free_and_drawing_needs_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys; from seekray import plots; assert 'matplotlib' not in sys.modules, 'imported at once'\n"
        f"plots.curves([], {str(tmp_path / 'x.png')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert plots.curves(HISTORY, tmp_path / "1.png").read_bytes() == plots.curves(HISTORY, tmp_path / "2.png").read_bytes()
