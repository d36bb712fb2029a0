"""The page at `/` in Debian's Chromium: each kind of model, by keyboard, by axe, with hostile names."""

from __future__ import annotations

import csv
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from small_lm import untrained, write_bundle
from tests.browser import Page, browser
from tests.serving import Ingress, Server, call

from seekray.generator import Generator
from seekray_serve.auth import guarded
from seekray_serve.front import PUBLIC, FrontApp
from seekray_serve.generate.rows import RowApp
from seekray_serve.generate.texts import TextApp
from seekray_serve.keys import KeyStore
from seekray_serve.prediction import PredictionApp

HOSTILE = "<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for side, columns in (("left", slice(0, 4)), ("right", slice(4, 8))):
        (folder / side).mkdir()
        for number in range(8):
            pixels = numpy.zeros((8, 8), numpy.uint8)
            pixels[:, columns] = 200 + number
            Image.fromarray(pixels).save(folder / side / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[str]:
    """A net, a model of texts, one with a template, a generator of rows and one of images, behind a front door."""
    from tests.serve.conftest import FakePredictor

    folder = tmp_path_factory.mktemp("bundles")
    ingress = Ingress()
    net: Any = FakePredictor(classes=["red", HOSTILE, "white"])
    ingress.models["wine"] = PredictionApp(net)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    plain = write_bundle(tmp_path_factory.mktemp("lm"), context_length=256)
    talk = write_bundle(tmp_path_factory.mktemp("talk"), template=template, context_length=256)
    for name, bundle in (("story", plain), ("talk", talk)):
        ingress.models[name] = TextApp(Generator.load(bundle, name=name, version="1"))
    image = {"image": {"kind": "image", "size": [8, 8], "channels": 1}, "label": {"kind": "categorical"}}
    shape = {"condition": "label", "hidden_size": 8}
    raws = {
        "flowers": {"task": "rows", "data": {"source": "sample:wine"}, "model": shape},
        "sides": {"task": "images", "data": {"source": str(pictures), "features": image}, "model": shape},
    }
    for name, raw in raws.items():
        bundle = untrained(folder / name, {"name": name, "family": "gen", **raw})
        ingress.models[name] = RowApp(Generator.load(bundle, name=name, version="4"))
    server = Server(ingress)
    ingress.front = FrontApp(server.url)
    with server:
        yield server.url


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as tab:
        yield tab


@pytest.fixture(autouse=True)
def nothing_went_wrong(page: Page, url: str) -> Iterator[None]:
    """No error in the page, nothing from elsewhere, nothing that a name made run."""
    page.problems.clear()
    page.requested.clear()
    yield
    assert page.problems == []
    assert page.js("window.pwned") is None
    assert [r for r in page.requested if not r.startswith((url, "data:", "blob:", "about:"))] == []


def choose(page: Page, url: str, name: str) -> None:
    page.open(f"{url}/#{name}")
    page.until(f"document.querySelector('h2')?.textContent === {json.dumps(name)}")


def test_the_page_may_run_nothing_but_its_own_script(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    for path in ("/", "/page.js", "/page.css"):
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        policy = answer.getheader("content-security-policy")
        assert answer.status == 200
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.getheader("x-content-type-options") == "nosniff"
        assert "innerHTML" not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text  # the stylesheet


def test_a_row_by_keyboard_and_its_probabilities_as_bars(page, url):
    choose(page, url, "wine")
    page.press("Tab")
    assert page.js("document.activeElement.className") == "skip"
    page.press("Enter")
    page.press("Tab")
    while page.js("document.activeElement.parentElement.textContent") != "alcohol":
        page.press("Tab")
    page.js("document.activeElement.select()")
    page.press("1", text="1")
    page.press("2", text="2")
    page.press("Enter")
    page.until("document.querySelector('.bars')")
    found = call(f"{url}/wine/v1/predict", {"rows": [{"alcohol": 12, "ash": 2.5, "colour": "red"}]})[1]
    rows = page.js("[...document.querySelectorAll('.bars tr')].map(r => [r.cells[0].textContent, r.cells[2].textContent, "
                   "r.querySelector('.bar').getBoundingClientRect().width / r.cells[1].clientWidth])")  # fmt: skip
    likely = sorted(found["probabilities"][0].items(), key=lambda item: -item[1])
    assert [row[:2] for row in rows] == [[name, f"{p:.3f}"] for name, p in likely]
    assert HOSTILE in [row[0] for row in rows]
    assert all(abs(width - p) < 0.2 for (_, _, width), (_, p) in zip(rows, likely, strict=True))
    assert rows[0][2] > rows[1][2] > rows[2][2]
    assert page.js("document.querySelector('.answer').firstChild.data") == str(found["predictions"][0])
    assert page.js("document.querySelectorAll('main img').length") == 0
    # An error is told in its own words beside the form.
    page.js("document.querySelector('form.card textarea, form.card input[type=text]').value = 'poison'")
    page.js("document.querySelector('form.card').requestSubmit()")
    page.until("document.querySelector('.wrong')?.textContent.includes('poison')")


def test_a_file_of_rows(page, url, tmp_path):
    choose(page, url, "wine")
    rows = [{"alcohol": 10 + i / 10, "ash": "" if i == 7 else 2, "colour": f'a "{i}", {HOSTILE}'} for i in range(1300)]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    page.choose_file("input[type=file]", tmp_path / "rows.csv")
    page.js("document.querySelectorAll('form.card')[1].requestSubmit()")
    page.until("document.querySelector('a[download]')")
    shown = page.js("[...document.querySelectorAll('.scroll tbody tr')].map(r => r.cells[0].textContent)")
    columns = {name: [row[name] or None for row in rows] for name in rows[0]}
    wanted = [str(p) for p in call(f"{url}/wine/v1/predict", {"columns": columns})[1]["predictions"]]
    assert shown == wanted[:20]
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.js("document.querySelector('a[download]').click()")
    while not (tmp_path / "predictions.csv").exists():
        page.js("new Promise(r => setTimeout(r, 50))")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["prediction"] for row in written] == wanted
    assert written[3]["colour"] == rows[3]["colour"]
    assert {f"probability_{c}" for c in ("red", HOSTILE, "white")} <= written[0].keys()
    (tmp_path / "other.csv").write_text("alcohol,ash\n1,2\n")
    page.choose_file("input[type=file]", tmp_path / "other.csv")
    page.js("document.querySelectorAll('form.card')[1].requestSubmit()")
    page.until("document.querySelectorAll('.wrong')[1].textContent === 'the file lacks: colour'")


@pytest.mark.parametrize(("name", "path"), [("story", "/v1/completions"), ("talk", "/v1/chat/completions")])
def test_texts_as_they_are_made(page, url, name, path):
    choose(page, url, name)
    page.js("document.querySelector('[name=seed]').value = 3; document.querySelector('[name=max]').value = 60")
    page.js("document.querySelector('form.card textarea').value = 'abc'")
    last = "document.querySelector('.talk li:last-child span')"
    watch = f"new MutationObserver(() => parts.add({last}?.textContent))"
    page.js(f"window.parts = new Set(); {watch}.observe(document.querySelector('.talk'), {{childList: true, subtree: true}})")
    page.js("document.querySelector('form.card').requestSubmit()")
    page.until("document.getElementById('said').textContent.includes('first token')")
    asked = {"model": name, "seed": 3, "max_tokens": 60, "temperature": 0.8}
    given = {"prompt": "abc"} if name == "story" else {"messages": [{"role": "user", "content": "abc"}]}
    choice = call(f"{url}/{name}{path}", {**asked, **given})[1]["choices"][0]
    wanted = choice["message"]["content"] if name == "talk" else "abc" + choice["text"]
    assert page.js(f"{last}.textContent") == wanted
    assert page.js("parts.size") > 3  # in parts, not at once


def test_rows_and_images_with_a_condition_and_a_seed(page, url):
    choose(page, url, "flowers")
    fields = "[...document.querySelectorAll('form.card input')]"
    page.js(f"{fields}[0].value = 5; {fields}[1].value = 2; {fields}[2].value = 'class_1'")
    page.js("document.querySelector('form.card').requestSubmit()")
    page.until("document.querySelectorAll('main tbody tr').length === 5")
    labels = page.js("[...document.querySelectorAll('main tbody tr')].map(r => r.innerText)")
    made = call(f"{url}/flowers/v1/generate", {"rows": 5, "seed": 2, "where": {"label": "class_1"}})[1]["rows"]
    assert all("class_1" in text for text in labels)
    assert len(made) == 5
    choose(page, url, "sides")
    page.js("document.querySelector('form.card').requestSubmit()")
    page.until("document.querySelectorAll('.pictures img').length === 12")
    page.until("[...document.querySelectorAll('.pictures img')].every(i => i.naturalWidth === 8)")
    assert page.js("document.querySelector('.pictures img').alt").startswith("label ")


def test_plots_of_latency_load_and_versions(page, url):
    choose(page, url, "wine")
    page.until("document.querySelectorAll('aside path').length >= 4")
    page.js("document.querySelector('form.card').requestSubmit()")
    page.until("document.querySelector('aside').innerText.includes('version 3: ')")
    assert "ms" in page.js("document.querySelector('aside').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, url, scheme):
    page.scheme(scheme)
    for name in ("wine", "talk", "flowers", "sides") if scheme == "light" else ("wine", "talk"):
        choose(page, url, name)
        if name == "talk":
            page.js(
                "document.querySelector('form.card textarea').value = 'abc'; document.querySelector('[name=max]').value = 5"
            )
        page.js("document.querySelector('form.card').requestSubmit()")
        page.until("document.querySelector('.bars, .pictures, main tbody tr, .talk .assistant')")
        page.until("document.querySelectorAll('aside path').length >= 2")
        assert page.axe() == [], name


def test_a_key_is_asked_for_and_kept_for_the_tab(page, tmp_path):
    store = KeyStore(str(tmp_path))
    _, text = store.create("laptop")
    from tests.serve.conftest import FakePredictor

    auth = {"keys": str(tmp_path), "required": True}
    ingress = Ingress()
    net: Any = FakePredictor()
    inner = PredictionApp(net)
    ingress.models["wine"] = guarded(inner, auth)
    server = Server(ingress)
    ingress.front = guarded(FrontApp(server.url, key=text), auth, PUBLIC)
    with server:
        page.open(server.url)
        page.until("!document.getElementById('keyform').hidden")
        assert "401" in page.js("document.querySelector('main').innerText")
        assert page.axe() == []
        page.js(
            f"document.getElementById('key').value = {json.dumps(text)}; document.getElementById('keyform').requestSubmit()"
        )
        page.until("document.querySelector('h2')?.textContent === 'wine'")
        page.js("document.querySelector('form.card').requestSubmit()")
        page.until("document.querySelector('.bars')")
        page.js("sessionStorage.clear()")
        inner.batcher.close()
        page.send("Page.navigate", url="about:blank")
        page.requested.clear()
