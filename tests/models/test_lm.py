"""The family lm: what is a target, adapters, starting from a model, measures, and its door."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import SMALL
from ranks import forked
from training_kit import Listen, run_here

from seekray.checkpoint import Checkpoints, load_initial
from seekray.config import Experiment
from seekray.data.text.passages import IGNORED
from seekray.errors import ConfigError, DataError, UserError
from seekray.evaluation import evaluate, read
from seekray.generator import Generator, json_rows, load_model, open_model
from seekray.model_ref import with_base
from seekray.models import get_family
from seekray.models.lm import token_losses
from seekray.models.lora import LoraLinear, without_adapters
from seekray.report import conclude
from seekray.settings import read_settings
from seekray.storage import Storage
from seekray.tracking.spool import Tracker

WORDS = ["red", "green", "blue", "black", "white", "grey"]


def questions(folder: Path) -> Path:
    """A colour and its first letter, with a kind."""
    path = folder / "colours.jsonl"
    rows = [{"q": f"{w} {i % 5}?", "a": w[0].upper(), "kind": w[0]} for i, w in enumerate(WORDS * 12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def given(folder: Path, task: str = "finetune", **parts: Any) -> Experiment:
    """A small experiment on the questions."""
    text = {"tokenizer": "byte"} | ({"prompt": "q", "response": "a"} if task == "finetune" else {"column": "q"})
    data = {"source": str(questions(folder)), "text": text, "split": {"test": 0.1, "validation": 0.1}}
    if task == "classify":
        data["target"] = "kind"
    model = SMALL | {"dropout": 0.0, "hidden_size": 32} | parts.pop("model", {})
    training = {"epochs": 2, "batch_size": 16, "lr": 0.01, "log_every": 1} | parts.pop("training", {})
    base = {"name": "t", "family": "lm", "task": task, "resources": {"workers": 0}, "report": {"importances": False}}
    return Experiment.model_validate(base | {"data": data, "model": model, "training": training} | parts)


def bundle(experiment: Experiment, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train and conclude: the bundle and its metrics."""
    prepared = experiment.prepare()
    last = run_here(experiment, prepared, folder)
    done = conclude(experiment, "0" * 12, Storage(str(folder)), prepared, last, Tracker(Storage(str(folder)), "t"))
    return folder / done.bundle, done.metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the questions' text."""
    folder = tmp_path_factory.mktemp("base")
    return bundle(given(folder, "pretrain", training={"epochs": 8}), folder / "run")[0]


class TestTargets:
    def test_the_loss_is_on_the_response_alone(self, tmp_path: Path) -> None:
        prepared = given(tmp_path).prepare()
        tokenizer = prepared.schema.tokenizer
        batch = next(iter(get_family("lm").batches(prepared.train, given(tmp_path).training)))
        for tokens, targets in zip(batch.inputs["tokens"], batch.targets, strict=True):
            kept = targets[targets != IGNORED].tolist()
            assert len(kept) == 2
            assert kept[1] == tokenizer.end
            prompt = tokenizer.decode(tokens[: int((targets != IGNORED).nonzero()[0]) + 1].tolist())
            assert prompt.endswith("?\n")
            assert tokenizer.decode(kept[:1]) == prompt[0].upper()
        assert batch.global_rows == int((batch.targets != IGNORED).sum())

    def test_a_long_prompt_loses_its_beginning(self, tmp_path: Path) -> None:
        prepared = given(tmp_path, model={"context_length": 6}).prepare()
        assert prepared.train.lengths.max() == 7
        assert any("longer than model.context_length (6 tokens)" in w for w in prepared.warnings)
        first = prepared.train.tokens[prepared.train.starts[0] : prepared.train.starts[1]]
        assert prepared.schema.tokenizer.decode(first[:-2].tolist()).endswith("?\n")

    def test_a_chat_template_is_kept_and_used(self, tmp_path: Path) -> None:
        template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
        (tmp_path / "chat.jinja").write_text(template)
        experiment = given(tmp_path)
        text = experiment.data.text.model_copy(
            update={"chat_template": str(tmp_path / "chat.jinja"), "special_tokens": ("<|user|>", "<|assistant|>")}
        )
        data = experiment.data.model_copy(update={"text": text})
        schema = experiment.model_copy(update={"data": data}).prepare().schema
        user, assistant = (schema.tokenizer.id_of(t) for t in ("<|user|>", "<|assistant|>"))
        ids = schema.encode_prompts(["red?"])[0]
        assert (ids[0], ids[1], ids[-1]) == (schema.tokenizer.end, user, assistant)
        again = get_family("lm").schema(json.loads(json.dumps(schema.to_json())), schema.files())
        assert again == schema or again.encode_prompts(["red?"]) == [ids]
        assert schema.files()["chat_template.jinja"].decode() == template


class TestMeasures:
    def test_losses_are_those_of_one_long_pass(self) -> None:
        config = get_family("lm").Config.model_validate(SMALL | {"dropout": 0.0})
        from seekray.models.transformer import Transformer

        network = Transformer(config, 50)
        tokens = torch.randint(0, 50, (5, 16))
        found = token_losses(network, tokens[:, :-1], tokens[:, 1:])
        logits = network(tokens[:, :-1]).log_softmax(-1)
        expected = -logits.gather(2, tokens[:, 1:, None])[..., 0]
        assert torch.allclose(found, expected, atol=1e-5)

    def test_bits_per_byte_of_a_uniform_model(self, base: Path) -> None:
        """A model that finds all of its 257 tokens equally likely: log2(257) bits a token, an end token a text."""
        model = load_model(base)
        assert isinstance(model, Generator)
        for parameter in model.modules["lm"].parameters():
            parameter.zero_()
        import pyarrow as pa

        texts = ["abc", "x" * 100, "", None]
        found = evaluate(model, pa.table({"q": pa.array(texts, pa.string())}))
        assert (found.rows, found.rejected) == (2, 2)
        assert found.metrics["loss"] == pytest.approx(math.log(257), rel=1e-5)
        assert found.metrics["bits_per_byte"] == pytest.approx(math.log2(257) * 105 / 103, rel=1e-5)
        assert found.metrics["perplexity"] == pytest.approx(257, rel=1e-4)

    def test_text_files_are_read_as_texts(self, base: Path, tmp_path: Path) -> None:
        from seekray.data.options import Data

        (tmp_path / "a.txt").write_text("red 1?\n\ngreen, 2?\n")
        model = load_model(base)
        table = read(model, Data(source=str(tmp_path / "a.txt")))
        assert table.to_pydict() == {"q": ["red 1?\n\ngreen, 2?\n"]}
        assert 0 < evaluate(model, table).metrics["bits_per_byte"] < 20
        with pytest.raises(UserError, match=r"--by q: .* is measured over all data at once, not in groups"):
            evaluate(model, table, by=["q"])


class TestStartingFromAModel:
    def test_shape_tokenizer_and_weights_are_taken(self, base: Path, tmp_path: Path) -> None:
        own = Experiment.model_validate(given(tmp_path).as_json() | {"model": {"init_from": str(base), "dropout": 0.1}})
        experiment = with_base(own, read_settings({"SEEKRAY_HOME": str(tmp_path)}))
        assert (experiment.model.hidden_size, experiment.model.dropout) == (32, 0.1)
        prepared = experiment.prepare()
        assert prepared.fingerprint["base"]
        still = experiment.training.model_copy(update={"lr": 1e-9, "max_steps": 1, "epochs": None})
        learned, _ = bundle(experiment.model_copy(update={"training": still}), tmp_path / "tuned")
        weights, before = (load_model(b).modules["lm"].state_dict() for b in (learned, base))
        assert all(torch.allclose(weights[k], before[k], atol=1e-6) for k in before)
        assert load_model(learned).schema.tokenizer.to_bytes() == load_model(base).schema.tokenizer.to_bytes()

    def test_other_sizes_are_refused(self, base: Path, tmp_path: Path) -> None:
        prepared = given(tmp_path, model={"init_from": str(base), "hidden_size": 16}).prepare()
        modules = get_family("lm").build(given(tmp_path, model={"hidden_size": 16}).model, prepared.schema)
        with pytest.raises(ConfigError, match="leave the sizes"):
            load_initial(modules, prepared.initial)

    def test_what_is_no_text_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no bundle of a text model"):
            given(tmp_path, model={"init_from": str(tmp_path)}).prepare()

    def test_adapters_alone_are_trained_and_merged(self, base: Path, tmp_path: Path) -> None:
        experiment = given(tmp_path, model={"init_from": str(base), "lora": {"rank": 2}}, training={"lr": 0.05})
        prepared = experiment.prepare()
        last = run_here(experiment, prepared, tmp_path / "run")
        weights, before = last.group("weights"), prepared.initial
        adapters = {k for k in weights if "lora" in k}
        assert len(adapters) == 2 * 4
        assert all(torch.equal(weights[k], before[k]) for k in weights.keys() - adapters)
        assert any(k.endswith("lora_b") and weights[k].abs().max() > 0 for k in adapters)
        done = conclude(experiment, "0" * 12, Storage(str(tmp_path)), prepared, last, Tracker(Storage(str(tmp_path)), "t"))
        plain = Generator.load(tmp_path / done.bundle)
        assert plain.info["model"]["lora"] is None
        apart = open_model(
            {"name": "t", "family": "lm", "model": experiment.as_json()["model"]}, prepared.schema, last.group("best")
        )
        tokens = torch.randint(0, 200, (3, 12))
        with torch.no_grad():
            a, b = (m.modules["lm"](tokens) for m in (plain, apart))
        assert torch.allclose(a, b, atol=1e-5)
        with pytest.raises(ValueError, match="it needs model"):
            given(tmp_path, model={"lora": {}})

    def test_adapters_kept_apart_are_merged_by_who_starts_from_them(self, base: Path, tmp_path: Path) -> None:
        lora = {"rank": 2, "merge": False}
        experiment = given(tmp_path, model={"init_from": str(base), "lora": lora}, training={"lr": 0.05})
        kept, _ = bundle(experiment, tmp_path / "run")
        model = load_model(kept)
        assert model.info["model"]["lora"]["rank"] == 2
        assert [json_rows(model.generate(**r)) for r in model.sample["requests"]] == model.sample["answers"]
        merged = without_adapters(model.modules["lm"])
        assert not any(isinstance(m, LoraLinear) for m in merged.modules())
        own = Experiment.model_validate(given(tmp_path).as_json() | {"model": {"init_from": str(kept)}})
        started = with_base(own, read_settings({"SEEKRAY_HOME": str(tmp_path)}))
        assert started.model.lora is None
        initial = started.prepare().initial
        modules = get_family("lm").build(started.model, model.schema)
        load_initial(modules, initial)
        tokens = torch.randint(0, 200, (2, 9))
        with torch.no_grad():
            adapted = model.modules["lm"](tokens)
            assert torch.allclose(modules["lm"].eval()(tokens), adapted, atol=1e-5)
            assert torch.allclose(merged(tokens), adapted, atol=1e-5)

    def test_a_classifier_starts_from_a_language_model(self, base: Path, tmp_path: Path) -> None:
        experiment = given(tmp_path, "classify", model={"init_from": str(base)}, training={"epochs": 6})
        _, metrics = bundle(experiment, tmp_path / "run")
        assert metrics["accuracy"] > 0.5


class TestRanks:
    def test_losses_of_two_workers_equal_one_in_float32(self, tmp_path: Path) -> None:
        """Each of the first 20 steps, with accumulation and recomputed activations beside neither."""
        training = {"max_steps": 20, "epochs": None, "batch_size": 8, "precision": "fp32", "clip_norm": 1.0}
        one = given(tmp_path, "pretrain", training=training)
        two = given(tmp_path, "pretrain", training=training | {"accumulate": 2}, model={"checkpointing": True})
        job = {"kind": "run", "experiment": two.as_json(), "folder": str(tmp_path / "two"), "world": 2}
        forked([job])
        ears = Listen()
        alone = run_here(one, None, tmp_path / "one", ears)
        ranks = Checkpoints(Storage(str(tmp_path / "two"))).latest()
        assert ranks is not None
        told = {p["step"]: p["value"] for p in ranks.state["told"] if p["key"] == "loss"}
        series = ears.series("loss")
        assert len(told) == 20
        assert told.keys() == series.keys()
        assert max(abs(told[s] - series[s]) for s in told) <= 1e-5
        assert alone.state["step"] == ranks.state["step"] == 20


def test_unfit_experiments_are_refused(tmp_path: Path) -> None:
    for task, change, words in (
        ("pretrain", {"target": "kind"}, "data.target is for classify"),
        ("classify", {}, "needs the column of labels"),
        ("pretrain", {"text": {"prompt": "q", "response": "a"}}, "are for task: finetune"),
        ("pretrain", {"text": {"prompt": "q"}}, "go together"),
        ("pretrain", {"features": ["q"]}, "data.features is for tables"),
    ):
        data = {"source": "x.jsonl"} | change
        with pytest.raises(ValueError, match=words):
            Experiment.model_validate({"name": "t", "family": "lm", "task": task, "data": data})
