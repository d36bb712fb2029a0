"""A predictor without a bundle, and a client without a socket, for everything that needs no Ray."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from seekray.errors import DataError
from seekray.settings import Settings, read_settings


@dataclass
class Feature:
    name: str
    kind: str
    size: int | None = None
    example: Any = 1.0
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Schema:
    features: list[Feature]
    classes: list[Any] | None
    key: tuple[str, ...] = ("id",)


@dataclass
class Prediction:
    predictions: list[Any]
    probabilities: dict[str, list[float]] | None
    quantiles: None = None


class FakePredictor:
    """Two numbers and a category, three classes; notes the size of each forward pass."""

    def __init__(self, task: str = "classification", classes: list[Any] | None = None) -> None:
        self.name, self.version, self.task, self.hash = "wine", "3", task, "0" * 64
        self.classes = classes or ["a", "b", "c"]
        features = [Feature("alcohol", "numeric"), Feature("ash", "numeric", example=2.5)]
        features.append(Feature("colour", "categorical", example="red"))
        self.schema = Schema(features, None if task == "regression" else self.classes)
        self.sample = [{"alcohol": 13.0, "ash": 2.5, "colour": "red"}]
        self.sample_answers: dict[str, list[Any]] = {}
        self.batches: list[int] = []
        self.tables: list[Mapping[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self._weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))

    def begin(self) -> None:
        """Forget what the warm-up asked."""
        self.batches.clear()
        self.tables.clear()
        self.started.clear()

    def prepare(self, columns: Any) -> dict[str, torch.Tensor]:
        columns = columns if isinstance(columns, Mapping) else columns.to_pydict()  # Arrow's tables
        self.tables.append(columns)
        parts = []
        for name in ("alcohol", "ash"):
            values = []
            for number, value in enumerate(list(columns[name])):
                if isinstance(value, str | bool):
                    raise DataError(f"column {name!r} row {number}: {value!r} is not a number", field=name)
                values.append(0.0 if value is None or value != value else float(value))
            parts.append(torch.tensor(values))
        # The name of a category depends on the column's type, as it does with Arrow.
        column = list(columns["colour"])
        if "poison" in column:
            raise DataError(f"column 'colour' row {column.index('poison')} is poison", field="colour")
        if any(isinstance(v, float) for v in column):
            column = [None if v is None else float(v) for v in column]
        parts.append(torch.tensor([sum(str(v).encode()) % 17 / 17 for v in column]))
        return {"x": torch.stack(parts, 1)}

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self.started.set()
        assert self.gate.wait(10)
        x = inputs["x"]
        if (x[:, 0] == 666).any():
            raise RuntimeError("the model broke on a row")
        self.batches.append(len(x))
        return x / 10 @ self._weight  # small, so that no class is certain and differences show

    def decode(self, outputs: torch.Tensor) -> Prediction:
        if self.task == "regression":
            return Prediction(outputs[:, 0].tolist(), None)
        if self.task == "multilabel":
            p = outputs.double().sigmoid()
            labels = [[c for c, v in zip(self.classes, row, strict=True) if v >= 0.5] for row in p.tolist()]
        else:
            p = outputs.double().softmax(1)
            labels = [self.classes[i] for i in p.argmax(1).tolist()]
        return Prediction(labels, dict(zip(map(str, self.classes), p.T.tolist(), strict=True)))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error's object, checked to have the house's form."""
        error = self.json()["error"]
        assert error.keys() == {"code", "message", "field"}
        return dict(error)


@dataclass
class Client:
    """Calls an ASGI application inside the running event loop."""

    app: Any
    root: str = ""
    open: list[asyncio.Event] = field(default_factory=list)

    async def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, chunk: int = 0
    ) -> Answer:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **(headers or {})}
        parts = [raw[i : i + chunk] for i in range(0, len(raw), chunk)] if chunk else [raw]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            part = parts.pop(0) if parts else b""
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": self.root + path,
            "root_path": self.root,
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        }
        await self.app(scope, receive, send)
        start = next(m for m in sent if m["type"] == "http.response.start")
        content = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, content)


Scenario = Callable[[Client], Awaitable[Any]]


@pytest.fixture
def client() -> type[Client]:
    return Client


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


@pytest.fixture
def fake() -> type[FakePredictor]:
    return FakePredictor


@pytest.fixture
def serve_app() -> Callable[..., Any]:
    """Runs a scenario against the application of a predictor; gives what the scenario returns."""
    from seekray_serve.options import Limits
    from seekray_serve.prediction import PredictionApp

    def run(predictor: Any, scenario: Scenario, *, root: str = "/wine", **limits: int) -> Any:
        async def main() -> Any:
            app = PredictionApp(predictor, Limits(**limits))
            await app.startup()
            if isinstance(predictor, FakePredictor):
                predictor.begin()
            try:
                return await asyncio.wait_for(scenario(Client(app, root)), 20)
            finally:
                if isinstance(predictor, FakePredictor):
                    predictor.gate.set()
                await app.shutdown()

        return asyncio.run(main())

    return run


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models, and a second version of one of them."""
    if given := os.environ.get("SEEKRAY_TEST_BUNDLES"):  # folders digits1, digits2, wine
        return {name: Path(given) / name for name in ("digits1", "digits2", "wine")}
    from training_kit import bundle_of

    home = tmp_path_factory.mktemp("train")

    def make(name: str, seed: int) -> Path:
        raw = {
            "name": name,
            "family": "net",
            "task": "classification",
            "data": {"source": f"sample:{name}", "target": "label"},
            "model": {"hidden_size": [32]},
            "training": {"epochs": 2, "seed": seed},
        }
        return bundle_of(raw, home)

    return {"digits1": make("digits", 1), "digits2": make("digits", 2), "wine": make("wine", 0)}


@pytest.fixture(scope="session")
def served(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, dict[str, Any]]]:
    """Three models on one instance, for all tests of endpoints; what `up` said of it."""
    from small_lm import write_bundle
    from tests.serving import free_port

    from seekray_serve.lifecycle import deploy
    from seekray_serve.lifecycle.ready import ModelToServe

    settings = read_settings({"SEEKRAY_HOME": str(tmp_path_factory.mktemp("serve"))})
    models = [
        ModelToServe("digits", "1", bundles["digits1"]),
        ModelToServe("wine", "2", bundles["wine"]),
        ModelToServe("chat", "1", write_bundle(tmp_path_factory.mktemp("lm"), context_length=1024)),
    ]
    result = deploy.up(models, settings, port=free_port())
    yield settings, result
    deploy.down(settings)
