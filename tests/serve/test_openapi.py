"""schemathesis over the OpenAPI document of each application: no 5xx, no answer outside its schema, all of its checks."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from small_lm import untrained, write_bundle
from tests.serving import Ingress, Server
from training_kit import bundle_of

from seekray.generator import Generator
from seekray.predictor import Predictor
from seekray_serve.front import FrontApp
from seekray_serve.generate.rows import RowApp
from seekray_serve.generate.texts import TextApp
from seekray_serve.options import Limits
from seekray_serve.prediction import PredictionApp

schemathesis = pytest.importorskip("schemathesis")
FailureGroup = pytest.importorskip("schemathesis.core.failures").FailureGroup
APPLICATIONS = ("front", "penguins", "chat", "rows", "digits")
CHECKS = {
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "missing_required_header",
    "unsupported_method", "ignored_auth", "use_after_free", "ensure_resource_availability",
}  # fmt: skip
# What the words of a refusal say where a schema has no words for the rule: valid by the schema, and rightly refused.
RULES = (
    " values, column", "the model looks at", "more than max_tokens", "expected n (", "not with stream", "with it",
    "the model has 0 to", "rows asked for", "texts asked for", "where:", "exceeded maximum size", "schema",
)  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A net, a model of texts with a template, a generator of rows and one of images, behind a front door."""
    folder = tmp_path_factory.mktemp("bundles")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    net = {
        "name": "penguins", "family": "net", "task": "classification", "training": {"epochs": 1},
        "data": {"source": "sample:penguins", "target": "species"},
    }  # fmt: skip
    trained = bundle_of(net, folder / "home")
    few = Limits(max_rows=20)  # of texts, rows or images a request, so that a case takes no longer than it must
    made = {"rows": ("rows", "sample:wine"), "digits": ("images", "sample:digit-images")}
    (folder / "chat").mkdir()
    ingress = Ingress()
    ingress.models["penguins"] = PredictionApp(Predictor.load(trained, name="penguins", version="1"))
    chat = Generator.load(write_bundle(folder / "chat", template=template), name="chat", version="1")
    ingress.models["chat"] = TextApp(chat, few)
    for name, (task, source) in made.items():
        model = {"condition": "label", "hidden_size": 8}
        raw = {"name": name, "family": "gen", "task": task, "data": {"source": source}, "model": model}
        bundle = untrained(folder / name, raw)
        ingress.models[name] = RowApp(Generator.load(bundle, name=name, version="1"), few)
    server = Server(ingress)
    ingress.front = FrontApp(server.url)
    with server:
        yield server.url


def whole(value: Any) -> Any:
    """The same JSON; 1.0, which is an integer to a schema, written as 1."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def excused(failure: Exception, case: Any, text: str) -> bool:
    """Whether a refusal of what is valid by the schema follows a rule that a schema cannot say."""
    name = type(failure).__name__
    if name == "AcceptedNegativeData":
        return case.media_type == "multipart/form-data"  # every value of a form is a text, whatever it was before
    # Tensors' names, shapes and numbers of values hang together; tables and files are not JSON.
    beyond = case.media_type != "application/json" or case.path.endswith("/infer")
    return name == "RejectedPositiveData" and (beyond or any(rule in text for rule in RULES))


def run(url: str, application: str, cases: int) -> tuple[Counter[str], list[str]]:
    """Cases by operation, and what was wrong; as many valid as invalid ones of each operation with a body."""
    prefix = "" if application == "front" else f"/{application}"
    document = schemathesis.openapi.from_url(f"{url}{prefix}/openapi.json")
    assert {check.__name__ for check in schemathesis.checks.CHECKS.get_all()} >= CHECKS
    seen: Counter[str] = Counter()
    wrong: dict[tuple[str, str, str], str] = {}
    quiet = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body:
                continue  # there is nothing in it that could be wrong but the name of a model, which is a text

            @quiet
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                label = case.operation.label
                seen[label] += 1
                case.body = whole(case.body) if case.media_type == "application/json" else case.body
                answer = case.call()
                try:
                    case.validate_response(answer)
                except FailureGroup as group:
                    for failure in group.exceptions:
                        if not excused(failure, case, answer.text):
                            told = f"{label}: {failure}\n{str(case.body)[:300]}\n{answer.status_code} {answer.text[:300]}"
                            wrong.setdefault((label, type(failure).__name__, answer.text[:40]), told)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check()
    return seen, list(wrong.values())


@pytest.mark.parametrize("application", APPLICATIONS)
def test_few_cases_of_every_operation(url, application):
    seen, wrong = run(url, application, 4)
    assert wrong == []
    assert len(seen) > 5


@pytest.mark.slow
def test_two_thousand_cases(url):
    total: Counter[str] = Counter()
    for application in APPLICATIONS:
        seen, wrong = run(url, application, 60)
        assert wrong == []
        total.update({f"{application} {label}": count for label, count in seen.items()})
    print(dict(total))
    assert total.total() >= 2000
