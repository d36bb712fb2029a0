"""The convolutional stem of `net`: which numbers it reads, how pictures move, ranks, and that it learns places."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from ranks import forked
from training_kit import prepare_for, run_here, same

from seekray.checkpoint import Checkpoints
from seekray.config import Experiment
from seekray.data.options import Data
from seekray.data.tables.fitting import fit
from seekray.errors import ConfigError
from seekray.experiment_file import load
from seekray.generator import open_model
from seekray.inspect.init_file import init
from seekray.models.net import Net, NetConfig, Perceptron
from seekray.models.stem import Stem, _moved
from seekray.storage import Storage

FEATURES = {
    "size": {}, "left": {"kind": "image", "size": [8, 6], "channels": 1}, "colour": {},
    "right": {"kind": "image", "size": [5, 5], "channels": 3},
}  # fmt: skip


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def table(rows: int = 90) -> pa.Table:
    """A bar that lies or stands somewhere in `left`; noise in `right`."""
    rng = np.random.default_rng(0)
    left, kind = [], []
    for row in range(rows):
        pixels = rng.integers(0, 60, (8, 6))
        place = rng.integers(0, 6)
        pixels[(place, slice(None)) if row % 2 else (slice(None), place)] = 255
        left.append(png(pixels))
        kind.append("lies" if row % 2 else "stands")
    return pa.table(
        {
            "size": rng.normal(size=rows), "left": left, "right": [png(rng.integers(0, 255, (5, 5, 3))) for _ in range(rows)],
            "colour": rng.choice(["red", "green"], rows), "kind": kind,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stem") / "t.parquet"
    pq.write_table(table(), path)
    return path


def experiment(source: Path, model: dict[str, Any], **training: Any) -> Experiment:
    data = {"source": str(source), "target": "kind", "features": FEATURES}
    training = {"epochs": 12, "batch_size": 16, "lr": 0.01} | training
    model = {"hidden_size": [16], "stem": "conv", "stem_channels": [8, 8]} | model
    return Experiment.model_validate(
        {
            "name": "t", "family": "net", "task": "classification", "data": data, "model": model, "training": training,
            "resources": {"workers": 0},
        }
    )  # fmt: skip


def test_pictures_are_where_the_schema_says() -> None:
    """The stem's outputs are the convolutions written out, over the right pixels, with the numbers beside them."""
    given = table(7)
    schema = fit(given, Data(source="x", target="kind", features=FEATURES), "classification")
    assert schema.pictures == ((1, (8, 6, 1)), (49, (5, 5, 3)))
    dense = schema.transform(given)["dense"]
    stem = Stem(NetConfig(stem="conv", stem_channels=(4, 3)), schema).eval()
    parts = [dense[:, :1]]
    for (first, shape), layers in zip(schema.pictures, stem.layers, strict=True):
        x = dense[:, first : first + shape[0] * shape[1] * shape[2]].reshape(7, *shape).permute(0, 3, 1, 2)
        for layer in layers:
            x = F.max_pool2d(F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1).relu(), 2, ceil_mode=True)
        parts.append(x.flatten(1))
    assert [p.shape[1] for p in parts] == [1, 3 * 2 * 2, 3 * 2 * 2]
    torch.testing.assert_close(stem(dense), torch.cat(parts, dim=1))
    assert stem.width == 25
    whole = Perceptron(NetConfig(stem="conv"), schema)
    assert whole(schema.transform(given)).shape == (7, 2)


def test_pictures_move_by_whole_pixels_and_keep_their_edge() -> None:
    picture = torch.arange(12.0).view(1, 1, 3, 4).expand(200, 1, 3, 4)
    torch.manual_seed(0)
    moved = _moved(picture, 1)
    padded = F.pad(picture[:1], (1, 1, 1, 1), mode="replicate")[0, 0]
    allowed = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    seen = {next(n for n, other in enumerate(allowed) if torch.equal(one[0], other)) for one in moved}
    assert seen == set(range(9))


def test_only_training_moves_them(source: Path) -> None:
    given = experiment(source, {"stem_shift": 2})
    prepared = prepare_for(given)
    net = Net().build(given.model, prepared.schema)["net"]
    inputs = prepared.schema.transform(prepared.held_out)
    assert not torch.equal(net(inputs), net(inputs))
    net.eval()
    assert torch.equal(net(inputs), net(inputs))


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_it_learns_what_lies_anywhere(source: Path, tmp_path: Path, norm: str) -> None:
    given = experiment(source, {"norm": norm, "stem_shift": 1})
    prepared = prepare_for(given)
    last = run_here(given, prepared, tmp_path)
    model = open_model({"name": "t", "family": "net", "model": given.as_json()["model"]}, prepared.schema, last.group("best"))
    answers = model.predict(prepared.held_out).predictions  # type: ignore[union-attr]
    right = np.mean([a == b for a, b in zip(answers, prepared.held_out["kind"].to_pylist(), strict=True)])
    assert right >= 0.9


def test_two_ranks_equal_one(source: Path, tmp_path: Path) -> None:
    """Batch normalisation of pictures has the statistics of the global batch too."""
    given = experiment(source, {"norm": "batch"}, epochs=2, precision="fp64", batch_size=21)
    forked([{"kind": "run", "experiment": given.as_json(), "folder": str(tmp_path / "two"), "world": 2}])
    ranks = Checkpoints(Storage(str(tmp_path / "two"))).latest()
    assert ranks is not None
    same(run_here(given, None, tmp_path / "one"), ranks, "weights/", tolerance=1e-6)


def test_without_a_picture_it_is_refused(source: Path) -> None:
    given = experiment(source, {})
    bare = given.model_copy(update={"data": given.data.model_copy(update={"features": None, "exclude": ("left", "right")})})
    with pytest.raises(ConfigError, match=r"model.stem: conv is for images; the features are categorical, numeric"):
        prepare_for(bare)
    with pytest.raises(ValueError, match="stem_shift goes with"):
        NetConfig(stem_shift=1)


def test_init_writes_it_for_a_folder_of_images(tmp_path: Path, home: Path) -> None:
    given = table(24)
    for row, (pixels, kind) in enumerate(zip(given["left"].to_pylist(), given["kind"].to_pylist(), strict=True)):
        place = tmp_path / "bars" / kind / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pixels)
    found = init(str(tmp_path / "bars"), ["label"], tmp_path / "bars.yaml")
    assert [f["kind"] for f in found["features"]] == ["image"]
    written = load(tmp_path / "bars.yaml")
    assert written.model.stem == "conv"
    assert prepare_for(written).schema.classes == ["lies", "stands"]
