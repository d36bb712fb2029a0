"""DeepSeek-Net: its mathematics, every option, and batch normalisation over ranks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import forked
from torch import nn
from training_kit import Listen, experiment, run_here, write_table

from seekray.data.prepared import Prepared
from seekray.data.tables.prepare import prepare
from seekray.errors import ConfigError
from seekray.models.layers import ACTIVATIONS, BatchNorm
from seekray.models.net import Net, NetConfig, Perceptron
from seekray.models.optimizers import make_optimizer
from seekray.session import Session
from seekray.storage import Storage
from seekray.train_state import TrainState


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("net") / "table.csv")


@pytest.fixture(scope="module")
def prepared(source: Path) -> dict[str, Prepared]:
    return {t: prepare(experiment(source, t).data, t) for t in Net.tasks}


def _trained(source: Path, prepared: dict[str, Prepared], folder: Path, task: str, **model: Any) -> list[dict[str, float]]:
    given = experiment(source, task, model=model, training={"lr": 0.02, "epochs": 8})
    history: list[dict[str, float]] = run_here(given, prepared[task], folder).state["history"]
    return history


# ---- mathematics


def test_gradients_are_textbook_backpropagation(source: Path, prepared: dict[str, Prepared], tmp_path: Path) -> None:
    """One hidden layer of 50 sigmoids, plain SGD: Rumelhart, Hinton and Williams (1986) in NumPy."""
    lr, table = 0.5, prepared["classification"]
    given = experiment(
        source, model={"hidden_size": 50, "activation": "sigmoid"}, data={"features": ["a", "b", "c"]},
        training={"optimizer": "sgd", "lr": lr, "weight_decay": 0, "precision": "fp64", "batch_size": 32},
    )  # fmt: skip
    table = prepare(given.data, given.task)
    session = Session(given.training, Storage(str(tmp_path)), listener=Listen())
    state = TrainState(given, session, table.schema, table.train, table.validation)
    net = state.modules["net"]
    w1, b1, w2, b2 = (p.detach().numpy().copy() for p in net.parameters())
    assert w1.shape == (50, 3)
    for batch in itertools.islice(state.batches, 3):
        before = [p.detach().clone() for p in net.parameters()]
        session.begin(batch)
        state.family.train_step(state.modules, state.optimizers, batch, session)
        x, t = batch.inputs["dense"].numpy(), np.eye(3)[batch.targets.numpy()]  # type: ignore[union-attr]
        a = 1 / (1 + np.exp(-(x @ w1.T + b1)))  # (B, 50) forward
        z = a @ w2.T + b2
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)  # (B, 3)
        delta2 = (p - t) / len(x)  # backward: the output's error,
        delta1 = delta2 @ w2 * a * (1 - a)  # and the hidden layer's
        gradients = [delta1.T @ x, delta1.sum(0), delta2.T @ a, delta2.sum(0)]
        for parameter, old, gradient in zip(net.parameters(), before, gradients, strict=True):
            given_gradient = (old - parameter.detach()) / lr  # what the step of plain SGD has used
            np.testing.assert_allclose(given_gradient.numpy(), gradient, rtol=0, atol=1e-6)
        w1, b1, w2, b2 = (w - lr * g for w, g in zip((w1, b1, w2, b2), gradients, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initialisation_suits_the_activation(prepared: dict[str, Prepared], activation: Any) -> None:
    torch.manual_seed(0)
    config = NetConfig(hidden_size=(400, 400), activation=activation)
    net = Perceptron(config, prepared["classification"].schema)
    linear = net.layers[1].linear
    assert isinstance(linear, nn.Linear)
    rectifier = activation in ("relu", "gelu", "silu")
    gain = math.sqrt(2) if rectifier else 5 / 3 if activation == "tanh" else 1.0
    expected = gain / math.sqrt(400) if rectifier else gain * math.sqrt(2 / 800)
    assert float(linear.weight.detach().std()) == pytest.approx(expected, rel=0.02)
    assert not linear.bias.detach().any()
    # He's are normal, Glorot's uniform: only the latter have a bound
    bounded = float(linear.weight.detach().abs().max()) <= expected * math.sqrt(3) * 1.001
    assert bounded != rectifier


# ---- options

OPTIONS = [
    *({"activation": a} for a in ACTIVATIONS),
    {"norm": "batch"},
    {"norm": "layer", "residual": True, "hidden_size": [8, 8]},
    {"norm": "batch", "residual": True, "hidden_size": 8, "num_layers": 3, "dropout": 0.1, "input_dropout": 0.1},
    {"embedding_size": 5},
    {"hidden_size": []},
]


@pytest.mark.parametrize("model", OPTIONS, ids=str)
@pytest.mark.parametrize("task", Net.tasks)
def test_every_option_trains(
    source: Path, prepared: dict[str, Prepared], tmp_path: Path, task: str, model: dict[str, Any]
) -> None:
    history = _trained(source, prepared, tmp_path, task, **model)
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("regression", {"loss": "mse"}), ("regression", {"loss": "huber", "huber_delta": 0.5}), ("regression", {"loss": "mae"}),
        ("classification", {"loss": "cross_entropy", "class_weights": "balanced", "label_smoothing": 0.1}),
        ("classification", {"class_weights": [1, 2, 3]}),
        ("multilabel", {"loss": "bce", "class_weights": "balanced", "label_smoothing": 0.1}),
        ("multilabel", {"class_weights": [1, 2]}),
    ],
    ids=str,
)  # fmt: skip
def test_every_loss_trains(
    source: Path, prepared: dict[str, Prepared], tmp_path: Path, task: str, model: dict[str, Any]
) -> None:
    history = _trained(source, prepared, tmp_path, task, **model)
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def _loss(prepared: Prepared, outputs: torch.Tensor, targets: torch.Tensor, **model: Any) -> torch.Tensor:
    net = Perceptron(NetConfig(hidden_size=4, **model), prepared.schema).double()
    loss: torch.Tensor = net.loss(outputs, targets)
    return loss


def test_losses_by_hand(prepared: dict[str, Prepared]) -> None:
    """Class weights, smoothing, positive weights and Huber's bend, each from its formula."""
    table = prepared["classification"]
    z, t = torch.randn(30, 3, dtype=torch.float64), torch.arange(30) % 3
    logp = z.log_softmax(1)
    counts = torch.tensor(table.schema.class_counts, dtype=torch.float64)
    plain = -logp[torch.arange(30), t]
    balanced = counts.sum() / (3 * counts)
    torch.testing.assert_close(_loss(table, z, t, class_weights="balanced"), plain * balanced[t])
    assert float((balanced * counts).sum() / counts.sum()) == pytest.approx(1)  # the loss keeps its scale
    smooth = 0.8 * plain - 0.2 * logp.mean(1)
    torch.testing.assert_close(_loss(table, z, t, label_smoothing=0.2), smooth)
    own = torch.tensor([1.0, 2, 3], dtype=torch.float64)
    own = own * counts.sum() / (own * counts).sum()
    torch.testing.assert_close(_loss(table, z, t, class_weights=(1, 2, 3)), plain * own[t])

    table = prepared["multilabel"]
    z, y = torch.randn(30, 2, dtype=torch.float64), torch.randint(0, 2, (30, 2)).double()
    counts = torch.tensor(table.schema.class_counts, dtype=torch.float64)
    weights = (table.schema.rows - counts) / counts
    positive, negative = nn.functional.logsigmoid(z), nn.functional.logsigmoid(-z)
    expected = -(weights * y * positive + (1 - y) * negative).mean(1)
    torch.testing.assert_close(_loss(table, z, y, class_weights="balanced"), expected)
    y_smooth = 0.9 * y + 0.05
    torch.testing.assert_close(
        _loss(table, z, y, label_smoothing=0.1), -(y_smooth * positive + (1 - y_smooth) * negative).mean(1)
    )

    table = prepared["regression"]
    z, y = torch.tensor([[0.2], [3.0]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    torch.testing.assert_close(_loss(table, z, y, loss="huber", huber_delta=0.5).tolist(), [0.02, 0.5 * (3 - 0.25)])
    torch.testing.assert_close(_loss(table, z, y, loss="mae").tolist(), [0.2, 3.0])


def test_wrong_number_of_class_weights_is_refused(prepared: dict[str, Prepared]) -> None:
    with pytest.raises(ConfigError, match="2 given, the data has 3 classes"):
        Perceptron(NetConfig(class_weights=(1, 2)), prepared["classification"].schema)


def test_biases_and_norms_are_not_decayed(prepared: dict[str, Prepared], source: Path) -> None:
    net = Perceptron(NetConfig(hidden_size=4, norm="batch"), prepared["classification"].schema)
    groups = make_optimizer(net, experiment(source, training={"weight_decay": 0.1}).training).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for module in net.modules():
        if isinstance(module, nn.Linear):
            assert id(module.weight) in decayed
            assert id(module.bias) not in decayed
        if isinstance(module, BatchNorm):
            assert id(module.weight) not in decayed


# ---- batch normalisation over ranks


def test_batch_norm_over_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(3.0, 2.0, size=(12, 4)), rng.normal(size=(12, 4))
    np.savez(tmp_path / "in.npz", x=x, w=w)
    jobs = []
    for number, shares in enumerate([(6, 6), (11, 1), (12, 0), (5, 6, 1), (0, 12, 0)]):
        out = tmp_path / str(number)
        out.mkdir()
        jobs.append({"kind": "norm", "arrays": str(tmp_path / "in.npz"), "shares": shares, "out": str(out)})
    forked(jobs)
    norm = nn.BatchNorm1d(4).double()
    whole = torch.tensor(x, requires_grad=True)
    y = norm(whole)
    (y * torch.tensor(w)).square().sum().backward()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert whole.grad is not None
    for job in jobs:
        ranks = [np.load(f"{job['out']}/{rank}.npz") for rank in range(len(job["shares"]))]
        near = {"rtol": 0, "atol": 1e-9}
        np.testing.assert_allclose(np.concatenate([r["y"] for r in ranks]), y.detach().numpy(), **near)
        np.testing.assert_allclose(np.concatenate([r["dx"] for r in ranks]), whole.grad.numpy(), **near)
        np.testing.assert_allclose(sum(r["dweight"] for r in ranks), norm.weight.grad.numpy(), **near)
        np.testing.assert_allclose(sum(r["dbias"] for r in ranks), norm.bias.grad.numpy(), **near)
        for rank in ranks:
            np.testing.assert_allclose(rank["mean"], norm.running_mean.numpy(), **near)
            np.testing.assert_allclose(rank["var"], norm.running_var.numpy(), **near)


def test_batch_norm_of_one_row_alone() -> None:
    """A last batch of one row is no reason to stop; torch's own norm raises."""
    y = BatchNorm(3)(torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.equal(y, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm1d(3)(torch.ones(1, 3))
