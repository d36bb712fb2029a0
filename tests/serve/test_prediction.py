"""One model's endpoint, called in process: answers, errors, batches, limits."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import tracemalloc
from typing import Any

import pytest

from seekray.data.blocks import NumericBlock

ROW = {"alcohol": 13.2, "ash": 2.1, "colour": "red"}


def rows(count: int) -> list[dict[str, Any]]:
    return [{"alcohol": 10 + i * 0.37, "ash": i % 3, "colour": ["red", "white", None][i % 3]} for i in range(count)]


def test_rows_and_columns_give_the_same_answer(predictor, serve_app):
    async def scenario(call):
        by_rows = await call("POST", "/v1/predict", {"rows": rows(3)})
        columns = {name: [row[name] for row in rows(3)] for name in ROW}
        shuffled = dict(reversed(columns.items()))
        return by_rows, await call("POST", "/v1/predict", {"columns": shuffled})

    first, second = serve_app(predictor, scenario)
    assert first.status == second.status == 200
    body = first.json()
    assert body == second.json()
    assert body.keys() == {"predictions", "probabilities", "model", "version"}
    assert (body["model"], body["version"], len(body["predictions"])) == ("wine", "3", 3)
    for prediction, probabilities in zip(body["predictions"], body["probabilities"], strict=True):
        assert prediction == max(probabilities, key=probabilities.__getitem__)
        assert sum(probabilities.values()) == pytest.approx(1)


def test_a_key_may_come_along_and_is_never_a_feature(predictor, serve_app):
    async def scenario(call):
        return [
            (await call("POST", "/v1/predict", body)).json()
            for body in (
                {"rows": [ROW]},
                {"rows": [{"id": 7, **ROW}]},
                {"columns": {"id": [7], **{k: [v] for k, v in ROW.items()}}},
            )
        ]

    plain, by_rows, by_columns = serve_app(predictor, scenario)
    assert plain == by_rows == by_columns
    assert all("id" not in table for table in predictor.tables)


def test_regression_has_no_probabilities(fake, serve_app):
    async def scenario(call):
        return await call("POST", "/v1/predict", {"rows": [ROW]})

    assert serve_app(fake("regression"), scenario).json()["probabilities"] is None


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "field"),
    [
        (b"{", {}, 400, "bad_json", None),
        (b"", {}, 400, "bad_json", None),
        (b"\xff\xfe", {}, 400, "bad_json", None),
        (b"[]", {}, 400, "bad_data", None),
        ({}, {}, 400, "bad_data", None),
        ({"rows": [], "columns": {}}, {}, 400, "bad_data", None),
        ({"rows": []}, {}, 400, "bad_data", "rows"),
        ({"rows": "x"}, {}, 400, "bad_data", "rows"),
        ({"rows": [1]}, {}, 400, "bad_data", "rows"),
        ({"rows": [{**ROW, "alcoholl": 1}]}, {}, 400, "bad_data", "alcoholl"),
        ({"rows": [{"alcohol": 1, "colour": "red"}]}, {}, 400, "bad_data", "ash"),
        ({"rows": [{**ROW, "ash": "high"}]}, {}, 400, "bad_data", "ash"),
        ({"rows": [{**ROW, "ash": True}]}, {}, 400, "bad_data", "ash"),
        ({"columns": {"alcohol": [1, 2], "ash": [1, False], "colour": ["r", "r"]}}, {}, 400, "bad_data", "ash"),
        ({"rows": [ROW], "parameters": {}}, {}, 400, "bad_data", "parameters"),
        ({"rows": None, "columns": {"alcohol": [1], "ash": [1], "colour": ["r"]}}, {}, 400, "bad_data", None),
        ({"columns": {"alcohol": [1], "ash": [1, 2], "colour": ["r"]}}, {}, 400, "bad_data", "ash"),
        ({"columns": {"alcohol": 1}}, {}, 400, "bad_data", "alcohol"),
        ({"columns": {"alcohol": [], "ash": [], "colour": []}}, {}, 400, "bad_data", "columns"),
        ({"rows": [ROW] * 6}, {}, 413, "too_large", "rows"),
        (b" " * 3000, {}, 413, "too_large", None),
        (gzip.compress(b" " * 3000, mtime=0), {"content-encoding": "gzip"}, 413, "too_large", None),
        (b"{}", {"content-encoding": "gzip"}, 400, "bad_encoding", None),
        (b"{}", {"content-encoding": "br"}, 415, "unsupported_encoding", "content-encoding"),
        (b"a,b", {"content-type": "text/csv"}, 415, "unsupported_media_type", "content-type"),
    ],
)
def test_bad_input_is_a_4xx_with_its_reason(predictor, serve_app, body, headers, status, code, field):
    async def scenario(call):
        answer = await call("POST", "/v1/predict", body, headers)
        good = await call("POST", "/v1/predict", {"rows": [ROW]})
        return answer, good

    answer, good = serve_app(predictor, scenario, max_rows=5, max_body_bytes=2000)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (status, code, field)
    assert answer.error["message"]
    assert good.status == 200


@pytest.mark.parametrize("flags", [False, True])
def test_true_is_no_number_unless_the_model_learned_from_true_and_false(predictor, serve_app, flags):
    ash = predictor.schema.features[1]
    ash.state = {"mean": 0.0, "std": 1.0, "median": 0.0, "missing": False} | ({"flags": True} if flags else {})
    prepare = predictor.prepare

    def prepared(columns):  # as a real one's does
        ash_alone = NumericBlock([ash]).transform(columns, len(columns["ash"]))
        return prepare({**columns, "ash": ash_alone[:, 0].tolist()})

    predictor.prepare = prepared

    async def scenario(call):
        document = (await call("GET", "/openapi.json")).json()["components"]["schemas"]
        flag = {**ROW, "ash": True}
        answers = [await call("POST", "/v1/predict", {"rows": [ROW] * before + [flag]}) for before in (0, 39)]
        return answers, document["Row"]["properties"]["ash"]["type"]

    answers, types = serve_app(predictor, scenario)
    if flags:
        assert ([answer.status for answer in answers], types) == ([200, 200], ["number", "boolean", "null"])
        return
    assert types == ["number", "null"]
    messages = [answer.error["message"] for answer in answers]
    assert messages == [f"column 'ash', row {row}: expected a number, got True" for row in (0, 39)]


def test_a_misspelt_column_is_told_the_right_one(predictor, serve_app):
    async def scenario(call):
        return await call("POST", "/v1/predict", {"rows": [ROW, {**ROW, "alcoholl": 1}]})

    message = serve_app(predictor, scenario).error["message"]
    assert "row 1" in message
    assert "'alcohol'" in message


def test_a_body_over_the_limit_is_not_read_to_its_end(predictor, serve_app):
    async def scenario(call):
        announced = await call("POST", "/v1/predict", b"x", {"content-length": "99999999"})
        in_parts = await call("POST", "/v1/predict", b" " * 5000, chunk=100)
        return announced, in_parts

    assert [answer.status for answer in serve_app(predictor, scenario, max_body_bytes=1000)] == [413, 413]


def test_a_packed_body_is_unpacked_no_further_than_the_limit(predictor, serve_app):
    bomb = gzip.compress(bytes(50_000_000))

    async def scenario(call):
        tracemalloc.start()
        answer = await call("POST", "/v1/predict", bomb, {"content-encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return answer, peak

    answer, peak = serve_app(predictor, scenario, max_body_bytes=100_000)
    assert answer.status == 413
    assert peak < 5_000_000


def test_parts_and_gzip_are_put_together(predictor, serve_app):
    body = json.dumps({"rows": [ROW]}).encode()

    async def scenario(call):
        return (
            await call("POST", "/v1/predict", body, chunk=7),
            await call("POST", "/v1/predict", gzip.compress(body), {"content-encoding": "gzip"}),
        )

    assert [answer.status for answer in serve_app(predictor, scenario)] == [200, 200]


def test_what_is_not_there(predictor, serve_app):
    async def scenario(call):
        return await call("GET", "/nothing"), await call("GET", "/v1/predict"), await call("HEAD", "/healthz")

    missing, method, head = serve_app(predictor, scenario)
    assert (missing.status, missing.error["code"]) == (404, "not_found")
    assert (method.status, method.headers["allow"]) == (405, "POST")
    assert (head.status, head.body) == (200, b"")


def test_a_bug_is_a_500_that_gives_nothing_away(predictor, serve_app):
    predictor.decode = lambda outputs: 1 / 0

    async def scenario(call):
        return await call("POST", "/v1/predict", {"rows": [ROW]})

    # The warm-up of the application fails first: a model that cannot answer does not start.
    with pytest.raises(ZeroDivisionError):
        serve_app(predictor, scenario)
    predictor.sample = []
    answer = serve_app(predictor, scenario)
    assert answer.status == 500
    assert "division" not in answer.body.decode()


def test_requests_share_a_forward_pass_and_answers_do_not_depend_on_it(predictor, serve_app):
    bodies = [{"rows": [row]} for row in rows(40)]

    async def scenario(call):
        alone = [(await call("POST", "/v1/predict", body)).json() for body in bodies]
        predictor.batches.clear()
        together = await asyncio.gather(*(call("POST", "/v1/predict", body) for body in bodies))
        return alone, [answer.json() for answer in together]

    alone, together = serve_app(predictor, scenario)
    assert sum(predictor.batches) == 40
    assert len(predictor.batches) <= 3
    for one, other in zip(alone, together, strict=True):
        assert one["predictions"] == other["predictions"]
        assert one["probabilities"][0] == pytest.approx(other["probabilities"][0], abs=1e-6)


def test_features_are_computed_once_a_batch(predictor, serve_app):
    async def scenario(call):
        await asyncio.gather(*(call("POST", "/v1/predict", {"rows": [ROW]}) for _ in range(20)))

    serve_app(predictor, scenario)
    assert len(predictor.tables) <= 2


def test_types_of_one_request_do_not_rename_the_categories_of_another(predictor, serve_app):
    """A category 1 and a category 1.5 in one column would become "1.0" and "1.5"."""
    whole, broken = {**ROW, "colour": 1}, {**ROW, "colour": 1.5}

    async def scenario(call):
        alone = (await call("POST", "/v1/predict", {"rows": [whole]})).json()
        requests = [[whole], [broken], [whole, broken], [whole]]
        answers = await asyncio.gather(*(call("POST", "/v1/predict", {"rows": rows}) for rows in requests))
        return alone, answers[0].json(), answers[3].json()

    alone, *together = serve_app(predictor, scenario)
    for answer in together:
        assert answer["probabilities"][0] == pytest.approx(alone["probabilities"][0], abs=1e-6)


def test_a_bad_neighbour_harms_nobody(predictor, serve_app):
    good = [{"rows": [row]} for row in rows(8)]
    bad = {"columns": {"alcohol": ["x"], "ash": [1], "colour": ["red"]}}
    broken = {"rows": [{**ROW, "alcohol": 666}]}
    poison = {"rows": [ROW, {**ROW, "colour": "poison"}]}  # merged with the good ones before it is found out

    async def scenario(call):
        alone = [(await call("POST", "/v1/predict", body)).json() for body in good]
        bodies = [*good[:4], bad, broken, *good[4:], poison]
        return alone, await asyncio.gather(*(call("POST", "/v1/predict", body) for body in bodies))

    alone, answers = serve_app(predictor, scenario)
    assert [answer.status for answer in answers] == [200] * 4 + [400, 500] + [200] * 4 + [400]
    assert answers[4].error["field"] == "alcohol"
    assert "row 1" in answers[-1].error["message"]  # counted in its own request
    found = [answer.json()["predictions"] for answer in answers if answer.status == 200]
    assert found == [answer["predictions"] for answer in alone]


def test_too_many_waiting_is_429_with_retry_after(predictor, serve_app):
    async def scenario(call):
        predictor.gate.clear()
        calls = [asyncio.create_task(call("POST", "/v1/predict", {"rows": [ROW] * 900}))]
        while not predictor.started.is_set():
            await asyncio.sleep(0.01)
        calls += [asyncio.create_task(call("POST", "/v1/predict", {"rows": [ROW]})) for _ in range(5)]
        await asyncio.sleep(0.05)
        predictor.gate.set()
        return await asyncio.gather(*calls)

    answers = serve_app(predictor, scenario, max_queued_requests=2)
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429, 429]
    assert answers[-1].error["code"] == "too_busy"
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_a_client_that_hangs_up_leaves_no_work(predictor, serve_app):
    async def scenario(call):
        predictor.gate.clear()
        first = asyncio.create_task(call("POST", "/v1/predict", {"rows": [ROW] * 900}))
        while not predictor.started.is_set():
            await asyncio.sleep(0.01)
        gone = [asyncio.create_task(call("POST", "/v1/predict", {"rows": [ROW]})) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert call.app.batcher.queued == 3
        for task in gone:  # Serve cancels the request when its client hangs up
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        queued = call.app.batcher.queued
        predictor.gate.set()
        await first
        await asyncio.sleep(0.05)
        return queued

    assert serve_app(predictor, scenario) == 0
    assert predictor.batches == [900]


def test_the_documentation_names_the_features_and_its_example_works(predictor, serve_app):
    async def scenario(call):
        document = (await call("GET", "/openapi.json")).json()
        operation = document["paths"]["/v1/predict"]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        answer = await call("POST", "/v1/predict", example)
        return document, answer, await call("GET", "/docs"), await call("GET", "/v1/model")

    document, answer, page, model = serve_app(predictor, scenario)
    assert list(document["components"]["schemas"]["Row"]["properties"]) == [*ROW, "id"]
    assert document["servers"] == [{"url": "/wine"}]
    assert answer.status == 200
    text = page.body.decode()
    assert all(name in text for name in ROW)
    only_from_here(text)
    assert model.json()["classes"] == ["a", "b", "c"]


def only_from_here(page: str) -> None:
    """Every address in the page is a path of the same host, or data in the page itself."""
    assert re.search(r"(https?:|wss?:|[\"'(]//)", page) is None, page
    for address in re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page):
        assert address.startswith(("/", "#", "data:")), address
