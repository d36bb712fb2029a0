"""A MODEL on the command line, in every form, with and without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from seekray.errors import CorruptError, ModelNotFoundError
from seekray.model_ref import resolve
from seekray.predictor import Predictor
from seekray.settings import Settings
from seekray.tracking.carrier import send

from . import conftest as kit


@pytest.fixture
def two(where: Settings, bundle: Path, tmp_path: Path) -> Settings:
    """`pets` 1 and 2."""
    for number in (1, 2):
        made = kit.variant(bundle, tmp_path / f"v{number}", metrics={"accuracy": number / 10})
        run = kit.make_run(where, f"20261124-00000{number}-pets-0000")
        run.write(made, steps=1)
        send(run.storage, where)
    return where


def test_alias_version_and_bare_name(two: Settings) -> None:
    assert resolve("pets", two).version == "2"  # no champion yet: the newest
    kit.promote("1", two)
    found = resolve("pets@champion", two)
    assert (found.name, found.version, found.alias, found.run_id) == ("pets", "1", "champion", "20261124-000001-pets-0000")
    assert Predictor.load(found.bundle).task == "classification"
    assert resolve("pets", two).version == "1"
    kit.promote("2", two)
    assert resolve("pets@champion", two).version == "2"  # an alias is followed
    assert resolve("pets/1", two).version == "1"  # a version is not
    assert resolve("models:/pets/1", two).bundle == resolve("pets/1", two).bundle
    assert resolve("models:/pets@champion", two).alias == "champion"
    assert resolve("models:/pets/latest", two).version == "2"


def test_runs_by_our_id_and_mlflows(two: Settings) -> None:
    mine = resolve("runs:/20261124-000001-pets-0000", two)
    assert mine.bundle.parent.name == "20261124-000001-pets-0000"
    theirs = kit.found(two, "20261124-000001-pets-0000")["run"].info.run_id
    for reference in (f"runs:/{theirs}", f"runs:/{theirs}/model"):
        assert (resolve(reference, two).bundle / "manifest.json").read_bytes() == (mine.bundle / "manifest.json").read_bytes()
    with pytest.raises(ModelNotFoundError, match="did you mean '20261124-000001-pets-0000'"):
        resolve("runs:/20261124-000001-pets-00", two)


def test_a_run_that_never_reached_a_server(remote: Settings, bundle: Path) -> None:
    run = kit.make_run(remote, "r1")
    run.write(bundle)
    assert resolve("runs:/r1", remote).name == "pets"


def test_a_folder(where: Settings, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(bundle), where).bundle == bundle
    with pytest.raises(ModelNotFoundError, match=r"without a manifest\.json"):
        resolve(str(tmp_path), where)
    torn = kit.variant(bundle, tmp_path / "torn")
    (torn / "sample.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"sample\.json"):
        resolve(str(torn), where)


def test_a_data_folder_of_the_same_name_is_not_in_the_way(
    two: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("pets", two).version == "2"


def test_what_is_not_there_names_what_is(two: Settings) -> None:
    kit.promote("1", two)
    for reference, hint in {
        "pet@champion": "did you mean 'pets'",
        "pets@challenger": "there are: pets@champion",
        "pets/9": "there are: pets/2, pets/1",
        "pets@champion/2": "expected digits@champion",
        "./pets": "expected digits@champion",
    }.items():
        with pytest.raises(ModelNotFoundError, match=hint):
            resolve(reference, two)


def test_a_bundle_that_was_changed_in_the_registry_is_refused(two: Settings) -> None:
    folder = resolve("pets/1", two).bundle
    (folder / "sample.json").write_text("{}")
    with pytest.raises(CorruptError):
        resolve("pets/1", two)
