"""Numbers and letters as other countries' programs write them: decimal commas, thousands, dates, encodings."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from tests.data.conftest import source_of, write

from seekray import inspect
from seekray.data.options import Data
from seekray.data.parse import Rejects
from seekray.data.tables.prepare import prepare
from seekray.data.times import times
from seekray.errors import ConfigError, DataError
from seekray.experiment_file import load

EXPORT = (
    "Kunde;Größe;Menge;Datum;Umsatz\nä1;1.234,5;1.000;31.12.2025;7.722,14\n"
    "ä2;;567;1.2.2024;-0,5\nä3;12;-2.345.678;;12\nä4;1;1;;1\n"
)


def table(path: str, **options: Any) -> list[dict[str, Any]]:
    return list(source_of(path, **options).table().to_pylist())


def test_a_european_export(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16"):
        path = write(tmp_path / f"{encoding}.csv", EXPORT.encode(encoding))
        found = table(path, encoding="cp1252")
        assert found[0] == {"Kunde": "ä1", "Größe": 1234.5, "Menge": 1000.0, "Datum": "31.12.2025", "Umsatz": 7722.14}
        assert found[1] == {"Kunde": "ä2", "Größe": None, "Menge": 567.0, "Datum": "1.2.2024", "Umsatz": -0.5}
        assert found[2]["Menge"] == -2345678


def test_streamed_in_blocks(tmp_path: Path, small_blocks: None) -> None:
    body = "".join(f"{i};{i % 1000},25;{1 + i % 999}.{i % 1000:03}\n" for i in range(4000))
    source = source_of(write(tmp_path / "t.csv", "n;x;y\n" + body))
    batches = list(source.batches())
    assert len(batches) > 3
    found = pa.Table.from_batches(batches)
    assert found.schema.field("x").type == pa.float64()
    assert found.column("x")[3999].as_py() == 999.25
    assert [float(v) for v in found.column("y")[:2].to_pylist()] == [1000, 2001]  # texts, which are parsed as any


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x;y\n1;0,25\n2;0,5\n3;1,0\n", 0.25),
        ("x;y\n1;1.234,5\n2;2.000,0\n3;3\n", 1234.5),
        ('x,y\n1,"1,5"\n2,"2,5"\n3,"3,5"\n', 1.5),
        ('x,y\n1,"1,234.50"\n2,"2,000"\n3,3\n', 1234.5),
        ('x,y\n1,"1,234"\n2,"2,000"\n3,"3,000"\n', 1234.0),  # commas that cut: an English file
        ("x;y\n1;1'234.5\n2;2'000\n3;3\n", 1234.5),
        ("x;y\n1;1\u00a0234,5\n2;2\u202f000\n3;3\n", 1234.5),
        ("x;y\n1;1.5\n2;2.25\n3;3\n", 1.5),
        ("x;y\n1;1,234\n2;2,000\n3;3\n", "1,234"),  # thousands or thousandths: nobody knows
        ("x;y\n1.5;1,25\n2.5;2,5\n3.5;3,5\n", "1,25"),  # both marks in one file
        ("x;y\n1;007\n2;1.234,5\n3;3\n", "007"),
        ("x;y\n1;1.2.3\n2;1,5 kg\n3;3\n", "1.2.3"),
    ],
)
def test_the_mark_is_found_where_it_is_sure(tmp_path: Path, text: str, value: object) -> None:
    assert table(write(tmp_path / "t.csv", text))[0]["y"] == value


def test_a_given_mark_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "x;y\n1;1,234\n2;2,000\n3;3\n")
    assert [r["y"] for r in table(path, decimal=",")] == [1.234, 2.0, 3.0]
    assert [r["y"] for r in table(path, decimal=".")] == [1234.0, 2000.0, 3.0]


def test_one_bad_value_spoils_no_other(tmp_path: Path) -> None:
    body = "".join(f"{i};{i},5;{'ab'[i % 2]}\n" for i in range(60)) + "60;unklar;a\n"
    data = Data(source=write(tmp_path / "t.csv", "n;x;y\n" + body), target="y", features={"x": {}})
    with pytest.raises(DataError, match=r"row 60: expected a number, got 'unklar' \(rows"):
        prepare(data, "classification")
    found = prepare(data.model_copy(update={"on_bad_row": "skip"}), "classification")
    assert ([r["row"] for r in found.rejected], found.rows, found.reading) == ([60], 60, {"decimal": ","})


def test_what_the_errors_advise(tmp_path: Path) -> None:
    body = "".join(f"{i};{i},5;{'ab'[i % 2]}\n" for i in range(60))
    data = Data(
        source=write(tmp_path / "t.csv", "n;x;y\n" + body), target="y", features={"x": {"kind": "numeric"}}, decimal="."
    )
    with pytest.raises(DataError, match=r"set data.decimal: ','"):
        prepare(data, "classification")
    with pytest.raises(DataError, match=r"the header is not UTF-8; set data.encoding, for a file of Western Europe to cp1252"):
        table(write(tmp_path / "l.csv", EXPORT.encode("cp1252")))
    late = "n;x\n" + "1;a\n" * 400_000 + "2;ä\n"  # after what is looked at
    with pytest.raises(DataError, match=r"'x' is not UTF-8; set data.encoding"):
        table(write(tmp_path / "late.csv", late.encode("cp1252")))
    assert table(str(tmp_path / "late.csv"), encoding="cp1252")[-1]["x"] == "ä"


def test_init_finds_it_and_the_model_remembers(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    rows = [(draw.choice(["Köln", "Ulm"]), draw.randint(1000, 9_000_000)) for _ in range(200)]
    euros = [f"{cents // 100:,}".replace(",", ".") + f",{cents % 100:02}" for _, cents in rows]
    lines = [f"{c};{e};{1 + i % 28}.3.2025;{n}" for i, ((c, n), e) in enumerate(zip(rows, euros, strict=True))]
    write(tmp_path / "t.csv", ("Stadt;Betrag;Tag;Ziel\n" + "\n".join(lines) + "\n").encode("cp1252"))
    found = inspect.init("t.csv", ["Ziel"], tmp_path / "e.yaml")
    assert {f["name"]: f["kind"] for f in found["features"]} == {
        "Stadt": "categorical",
        "Betrag": "numeric",
        "Tag": "timestamp",
    }
    assert any("decimal comma" in u for u in found["unsure"])
    assert any("cp1252" in u for u in found["unsure"])
    written = yaml.safe_load((tmp_path / "e.yaml").read_text())["data"]
    assert (written["decimal"], written["encoding"]) == (",", "cp1252")
    experiment = load(tmp_path / "e.yaml", [])
    reading = prepare(experiment.data, experiment.task).reading
    # A file of whole thousands alone says nothing of its marks; the model's bundle does.
    later = write(tmp_path / "later.csv", "Stadt;Betrag;Tag\nKöln;1.000;1.3.2025\nUlm;2.000;\n".encode("cp1252"))
    data = Data(source=later).like_training(reading)
    assert table(later, decimal=data.decimal, encoding=data.encoding)[1] == {"Stadt": "Ulm", "Betrag": 2000.0, "Tag": None}
    assert Data(source="x", decimal=".").like_training(reading).decimal == "."


def test_settings_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("name: x\ndata: {source: 'sample:wine', target: label, encoding: klingon}\n")
    with pytest.raises(ConfigError, match="'klingon' is no encoding"):
        load(file, [])
    with pytest.raises(ValueError, match="are both ','"):
        Data(source="x", decimal=",", delimiter=",")


def test_dates_with_points() -> None:
    values = ["31.12.2025", "1.2.2024 08:05", "01.02.2024, 08:05:30", None, "32.1.2024"]
    for column in (values, pa.array(values)):
        rejects = Rejects(strict=False)
        found = times(column, "d", rejects).tolist()
        assert found[:3] == [dt.datetime(2025, 12, 31), dt.datetime(2024, 2, 1, 8, 5), dt.datetime(2024, 2, 1, 8, 5, 30)]
        assert found[3] is None
        assert [r["row"] for r in rejects.found] == [4]
