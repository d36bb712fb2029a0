"""What a job is made of and what is refused before anything is sent, against a stand-in for Ray's dashboard."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from seekray import parcel, submission
from seekray.errors import ClusterError, UserError
from seekray.model_ref import ResolvedModel
from seekray.settings import settings

EXPERIMENT = "name: houses\ntask: regression\ndata: {{source: {source}, target: price}}\nresources: {{workers: 1}}\n"
TOKEN = "a" * 64


class Dashboard:
    """Answers as Ray's dashboard does, and notes what it is sent."""

    def __init__(self) -> None:
        self.packages: list[bytes] = []
        self.requests: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = [{"raylet": {"state": "ALIVE", "sessionDir": "/nowhere/session"}}]
        self.details: dict[str, Any] = {"type": "SUBMISSION", "status": "SUCCEEDED", "entrypoint": "x", "driver_exit_code": 0}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, value: Any, code: int = 200) -> None:
                body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                given = self.headers.get("Authorization")
                if given is None:
                    self.answer("Unauthorized: Missing authentication token", 401)
                elif given != f"Bearer {TOKEN}":
                    self.answer("Forbidden: Invalid authentication token", 403)
                elif self.path == "/api/version":
                    self.answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"})
                elif self.path.startswith("/nodes"):
                    self.answer({"result": True, "data": {"summary": owner.nodes}})
                elif self.path.startswith("/api/packages"):
                    if self.command == "PUT":
                        owner.packages.append(body)
                    self.answer("", 200 if self.command == "PUT" else 404)
                elif self.command == "POST":
                    owner.requests.append(json.loads(body))
                    self.answer({"job_id": "raysubmit_1", "submission_id": "raysubmit_1"})
                elif self.path == "/api/jobs/":
                    first = owner.details | {"submission_id": "old", "start_time": 1_000}
                    self.answer([first, owner.details | {"submission_id": "new", "start_time": 2_000_000_000_000}])
                elif self.path == "/api/jobs/raysubmit_1":
                    self.answer(owner.details)
                else:
                    self.answer("Job nope does not exist", 404)

            do_GET = do_PUT = do_POST = handle_one

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def sent(self) -> dict[str, bytes]:
        """The files of the one package."""
        (package,) = self.packages
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    @property
    def job(self) -> dict[str, Any]:
        (request,) = self.requests
        return request

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = self.job["runtime_env"]["env_vars"]
        return found


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    found = Dashboard()
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and storage that a cluster can reach."""
    path = tmp_path / "mine"
    path.mkdir()
    monkeypatch.chdir(path)
    for name in [n for n in os.environ if n.startswith("AWS_")] + ["RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"]:
        monkeypatch.delenv(name, raising=False)
    use(monkeypatch, SEEKRAY_STORAGE="s3://bucket/lab")
    write(path / "experiment.yaml", EXPERIMENT.format(source="sample:diabetes").replace("price", "target"))
    return path


def use(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()


def write(path: Path, content: str | int = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(content) if isinstance(content, int) else content.encode())
    return path


def with_data(folder: Path, size: int | str) -> Path:
    write(folder / "own.yaml", EXPERIMENT.format(source="data/houses.csv"))
    return write(folder / "data" / "houses.csv", size)


# -- what is sent -----------------------------------------------------------------------------


def test_package_and_experiment_go_environments_and_data_stay(folder: Path, dashboard: Dashboard) -> None:
    goes = ["helpers.py", "models/mine.py", "notes.txt", "schema.json"]
    stays = [
        ".env", ".git/config", ".seekray/mlflow.db", ".venv/x.py", "my-env/bin/a.py", "node_modules/a.js",
        "pkg/__pycache__/a.py", "houses.csv", "big.csv.gz", "t.parquet", "pictures/cat.png", "weights.safetensors",
        "server.pem",
    ]  # fmt: skip
    for name in goes + stays:
        write(folder / name)
    write(folder / "my-env" / "pyvenv.cfg")
    write(folder / "rows.json", 2 * 2**20)
    (folder / "link.py").symlink_to("/etc/hostname")
    submission.submit("train", "experiment.yaml", ["--set", "training.epochs=2"], address=dashboard.url)
    names = set(dashboard.sent)
    assert {"experiment.yaml", *goes} <= names
    assert {"seekray/loop.py", "seekray/py.typed", "seekray_jobs/train.py", "seekray_serve/front.py"} <= names
    own = {n for n in names if not n.startswith(parcel.PACKAGES)}
    assert own == {"experiment.yaml", *goes}
    assert dashboard.job["entrypoint"] == "python -m seekray_jobs.train experiment.yaml --set training.epochs=2"


def test_what_git_ignores_stays(folder: Path) -> None:
    for name in ("a.py", "out/b.py", "secret.yaml", "out2/c.py"):
        write(folder / name)
    write(folder / ".gitignore", "out/\nsecret.yaml\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    own = {n for n in parcel.files(folder) if not n.startswith(parcel.PACKAGES)}
    assert own == {"a.py", "out2/c.py", "experiment.yaml"}


def test_of_a_home_folder_only_the_experiment_goes(folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "thesis.tex")
    monkeypatch.setenv("HOME", str(folder))
    submission.submit("train", "experiment.yaml", address=dashboard.url)
    assert {n for n in dashboard.sent if not n.startswith(parcel.PACKAGES)} == {"experiment.yaml"}


def test_the_package_runs_where_seekray_is_not_installed(folder: Path, dashboard: Dashboard, tmp_path: Path) -> None:
    submission.submit("train", "experiment.yaml", address=dashboard.url)
    there = tmp_path / "there"
    with zipfile.ZipFile(io.BytesIO(dashboard.packages[0])) as archive:
        archive.extractall(there)
    script = "import seekray, seekray_jobs.driver as d, seekray_serve; print(seekray.__file__, d.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=there,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(there)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(there / "seekray/__init__.py"), str(there / "seekray_jobs/driver.py")], done.stderr


def test_much_is_told_with_its_largest_files_and_too_much_is_refused(
    folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    write(folder / "small.bin", 2**20)
    submission.submit("train", "experiment.yaml", address=dashboard.url, say=told.append)
    assert not any("largest" in t for t in told)
    write(folder / "large.bin", 21 * 2**20)
    submission.submit("train", "experiment.yaml", address=dashboard.url, say=told.append)
    (line,) = [t for t in told if "largest" in t]
    assert "large.bin 21.0 MiB, small.bin 1.0 MiB" in line
    monkeypatch.setattr(parcel, "LIMIT", 20 * 2**20)
    with pytest.raises(UserError, match=r"large\.bin 21\.0 MiB"):
        submission.submit("train", "experiment.yaml", address=dashboard.url)


def test_the_same_files_make_the_same_package(folder: Path, tmp_path: Path) -> None:
    one = parcel.write(parcel.files(folder), tmp_path / "1.zip").read_bytes()
    os.utime(folder / "experiment.yaml", (0, 0))
    assert parcel.write(parcel.files(folder), tmp_path / "2.zip").read_bytes() == one


# -- data -------------------------------------------------------------------------------------


def test_local_data_is_refused_before_anything_is_sent(folder: Path, dashboard: Dashboard) -> None:
    with_data(folder, "area,price\n1,2\n")
    with pytest.raises(UserError, match=r"houses\.csv .* cannot see it; add --ship-data .*s3://.*sample:") as caught:
        submission.submit("train", "own.yaml", address=dashboard.url)
    assert caught.value.exit_code == 2
    assert not dashboard.packages
    assert not dashboard.requests


def test_ship_data_sends_the_file_and_tells_the_job_its_place(folder: Path, dashboard: Dashboard) -> None:
    with_data(folder, "area,price\n1,2\n")
    submission.submit("train", "own.yaml", address=dashboard.url, ship_data=True)
    assert dashboard.sent["shipped/houses.csv"] == b"area,price\n1,2\n"
    assert dashboard.job["entrypoint"].endswith("""own.yaml --set 'data.source="shipped/houses.csv"'""")


def test_a_folder_of_data_is_shipped_whole(folder: Path, dashboard: Dashboard) -> None:
    write(folder / "own.yaml", EXPERIMENT.format(source="data"))
    write(folder / "data" / "year=1" / "a.csv", "area,price\n1,2\n")
    submission.submit("train", "own.yaml", address=dashboard.url, ship_data=True)
    assert "shipped/data/year=1/a.csv" in dashboard.sent


def test_data_over_the_limit_is_not_shipped(folder: Path, dashboard: Dashboard) -> None:
    os.truncate(with_data(folder, "x"), submission.SHIP_LIMIT + 1)
    with pytest.raises(UserError, match=r"50\.0 MiB that --ship-data sends"):
        submission.submit("train", "own.yaml", address=dashboard.url, ship_data=True)
    assert not dashboard.requests


def test_data_that_is_not_there_is_refused(folder: Path, dashboard: Dashboard) -> None:
    write(folder / "own.yaml", EXPERIMENT.format(source="nothing.csv"))
    with pytest.raises(UserError, match="nothing"):
        submission.submit("train", "own.yaml", address=dashboard.url)
    assert not dashboard.requests


def test_data_below_a_shared_storage_folder_is_seen(
    folder: Path, dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    data = write(shared / "houses.csv", "area,price\n1,2\n")
    write(folder / "own.yaml", EXPERIMENT.format(source=data))
    use(monkeypatch, SEEKRAY_STORAGE=str(shared))
    submission.submit("train", "own.yaml", address=dashboard.url)
    assert dashboard.environment["SEEKRAY_STORAGE"] == shared.as_uri()


def test_network_file_systems_are_told_from_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = write(
        tmp_path / "mounts", "/dev/vda / ext4 rw 0 0\nnas:/x /mnt/nas nfs4 rw 0 0\ntmpfs /mnt/nas/tmp tmpfs rw 0 0\n"
    )
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: real(mounts if str(self) == "/proc/mounts" else self, *a, **k))
    assert parcel.on_network_file_system(Path("/mnt/nas/data/x.csv"))
    assert not parcel.on_network_file_system(Path("/mnt/nas/tmp/x.csv"))
    assert not parcel.on_network_file_system(Path("/home/x.csv"))


def test_a_wrong_experiment_is_refused_before_anything_is_sent(folder: Path, dashboard: Dashboard) -> None:
    with pytest.raises(UserError, match="epochs"):
        submission.submit("train", "experiment.yaml", ["--set=training.epochs=no"], address=dashboard.url)
    assert not dashboard.requests


def test_only_verbs_that_are_jobs(folder: Path, dashboard: Dashboard) -> None:
    with pytest.raises(UserError, match="serve: not a verb that runs as a job; there are train"):
        submission.submit("serve", "experiment.yaml", address=dashboard.url)


# -- models -----------------------------------------------------------------------------------


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A bundle that every reference leads to."""
    bundle = tmp_path / "bundle"
    write(bundle / "model.safetensors", 100)
    monkeypatch.setattr("seekray.model_ref.resolve", lambda ref, where: ResolvedModel("digits", "3", None, bundle, None))
    return bundle


def test_the_model_goes_along_whatever_names_it(model: Path, folder: Path, dashboard: Dashboard) -> None:
    data = write(folder / "new.csv", "a\n1\n")
    arguments = ["--data", str(data), "--compare=digits/2", "--by", "a"]
    submission.submit("evaluate", "digits@champion", arguments, address=dashboard.url, ship_data=True)
    names = {"shipped/model/model.safetensors", "shipped/compare/model.safetensors", "shipped/new.csv"}
    assert names <= set(dashboard.sent)
    wanted = "evaluate shipped/model --data shipped/new.csv --compare shipped/compare --by a"
    assert dashboard.job["entrypoint"] == f"python -m seekray_jobs.{wanted}"


def test_a_model_over_the_limit_needs_an_address(model: Path, folder: Path, dashboard: Dashboard) -> None:
    os.truncate(model / "model.safetensors", submission.SHIP_LIMIT + 1)
    with pytest.raises(UserError, match=r"over the 50\.0 MiB that go along"):
        submission.submit("evaluate", "digits/3", ["--data", "sample:digits"], address=dashboard.url)
    submission.submit("evaluate", "s3://b/runs/r/bundle", ["--data", "sample:digits"], address=dashboard.url)
    assert dashboard.job["entrypoint"].endswith("evaluate s3://b/runs/r/bundle --data sample:digits")


def test_answers_are_not_written_where_nobody_finds_them(model: Path, folder: Path, dashboard: Dashboard) -> None:
    for out in ("answers.csv", "/tmp/answers"):
        with pytest.raises(UserError, match="a folder that all nodes share"):
            submission.submit("predict", "digits/3", ["--data", "sample:digits", "--out", out], address=dashboard.url)
    with pytest.raises(UserError, match="evaluate writes into a folder"):
        submission.submit("evaluate", "digits/3", ["--data", "sample:digits", "--out=s3://b/e"], address=dashboard.url)
    submission.submit("predict", "digits/3", ["--data", "sample:digits", "--out", "s3://b/answers"], address=dashboard.url)
    assert dashboard.job["entrypoint"].endswith("--out s3://b/answers")


def test_local_rows_are_refused(model: Path, folder: Path, dashboard: Dashboard) -> None:
    data = write(folder / "new.csv", "a\n1\n")
    with pytest.raises(UserError, match=r"--data: .* add --ship-data"):
        submission.submit("predict", "digits/3", ["--data", str(data), "--out", "s3://b/a"], address=dashboard.url)


# -- environment ------------------------------------------------------------------------------


def test_the_job_learns_storage_and_server_and_no_secret(
    folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(
        monkeypatch,
        AWS_ENDPOINT_URL="http://minio:9000",
        AWS_ACCESS_KEY_ID="who",
        AWS_SECRET_ACCESS_KEY="psst",
        AWS_SESSION_TOKEN="psst",
        MLFLOW_TRACKING_URI="http://mlflow:5000",
        MLFLOW_TRACKING_PASSWORD="psst",
    )
    submission.submit("train", "experiment.yaml", address=dashboard.url)
    found = dashboard.environment
    assert found["SEEKRAY_STORAGE"] == "s3://bucket/lab"
    assert found["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "psst" not in json.dumps(dashboard.job)
    assert TOKEN not in json.dumps(dashboard.job)
    assert "AWS_ACCESS_KEY_ID" not in found


@pytest.mark.parametrize("uri", [None, "http://127.0.0.1:5000", "sqlite:////home/me/mlflow.db"])
def test_a_server_that_the_cluster_cannot_reach_is_not_passed_on(
    uri: str | None, folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    if uri:
        use(monkeypatch, MLFLOW_TRACKING_URI=uri)
    told: list[str] = []
    submission.submit("train", "experiment.yaml", address=dashboard.url, say=told.append)
    assert dashboard.environment["MLFLOW_TRACKING_URI"] == submission.NO_TRACKING
    assert any("seekray sync" in t for t in told)


def test_an_object_store_on_this_machines_loopback_is_refused(
    folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9000")
    with pytest.raises(UserError, match="loopback"):
        submission.submit("train", "experiment.yaml", address=dashboard.url)
    assert not dashboard.requests


def test_without_storage_a_remote_cluster_is_refused_and_this_machine_is_not(
    folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SEEKRAY_STORAGE")
    settings.cache_clear()
    with pytest.raises(UserError, match="SEEKRAY_STORAGE"):
        submission.submit("train", "experiment.yaml", address=dashboard.url)
    assert not dashboard.requests
    dashboard.nodes = [{"raylet": {"state": "ALIVE", "sessionDir": str(tmp_path)}}]
    submission.submit("train", "experiment.yaml", address=dashboard.url)
    assert dashboard.environment["SEEKRAY_STORAGE"] == (settings().home / "storage").as_uri()


def test_a_relative_storage_folder_becomes_a_whole_path(folder: Path, dashboard: Dashboard) -> None:
    text = (folder / "experiment.yaml").read_text() + "storage: lab\n"
    write(folder / "experiment.yaml", text)
    submission.submit("train", "experiment.yaml", address=dashboard.url)
    assert f'storage="{(folder / "lab").as_uri()}"' in dashboard.job["entrypoint"]


# -- the cluster ------------------------------------------------------------------------------


def test_an_address_that_was_given_wins_over_the_environment(
    folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, RAY_ADDRESS="http://127.0.0.1:1")
    assert submission.info("raysubmit_1", dashboard.url)["status"] == "SUCCEEDED"
    use(monkeypatch, RAY_ADDRESS=dashboard.url)
    assert submission.info("raysubmit_1")["status"] == "SUCCEEDED"


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379", "ray://10.0.0.1:10001"])
def test_what_is_no_dashboard_is_refused(address: str | None, folder: Path) -> None:
    with pytest.raises(UserError, match="expected the cluster's dashboard"):
        submission.info("raysubmit_1", address)


def test_nobody_there(folder: Path) -> None:
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:1"):
        submission.info("raysubmit_1", "http://127.0.0.1:1")


def test_the_token_is_taken_from_the_environment_or_a_file(
    folder: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(ClusterError, match="does not take the token of RAY_AUTH_TOKEN"):
        submission.info("raysubmit_1", dashboard.url)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match="asks for a token and none is here"):
        submission.info("raysubmit_1", dashboard.url)
    write(tmp_path / ".ray" / "auth_token", TOKEN + "\n")
    assert submission.info("raysubmit_1", dashboard.url)["exit_code"] == 0
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
        submission.info("raysubmit_1", dashboard.url)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", None, 1),
        ("FAILED", -9, 137),
        ("STOPPED", None, 1),
        ("RUNNING", None, None),
    ],
)
def test_exit_codes(status: str, code: int | None, expected: int | None, folder: Path, dashboard: Dashboard) -> None:
    dashboard.details |= {"status": status, "driver_exit_code": code}
    assert submission.info("raysubmit_1", dashboard.url) == {"job_id": "raysubmit_1", "status": status, "exit_code": expected}


def test_jobs_newest_first(folder: Path, dashboard: Dashboard) -> None:
    found = submission.jobs(dashboard.url)
    assert [j["job_id"] for j in found] == ["new", "old"]
    assert found[0]["started"] == "2033-05-18T03:33:20+00:00"


def test_an_unknown_job(folder: Path, dashboard: Dashboard) -> None:
    with pytest.raises(UserError, match="no such job"):
        submission.info("nope", dashboard.url)
