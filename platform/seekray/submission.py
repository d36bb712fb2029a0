"""A verb as a job on a running cluster: what is sent, what the cluster must see, and how the job goes.

Everything lasting goes to `storage`; the cluster needs the dependencies installed, not seekray.
The cluster counts as another machine: what is only here is sent along or refused beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.util
import json
import os
import shlex
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray import jobs_api, parcel
from seekray.errors import ClusterError, UserError
from seekray.settings import Settings, settings

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

VERBS = ("train", "tune", "evaluate", "predict")
SHIP_LIMIT = 50 * 2**20
SHIPPED = "shipped"
# Read by the job's MLflow-less spool: nobody listens at the discard port, so nothing is sent and all stays in storage.
NO_TRACKING = "http://127.0.0.1:9"
# Where things are, never who we are: a job's environment is shown in the dashboard and kept by Ray.
PLACES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_S3_ADDRESSING_STYLE")
LOOPBACKS = ("localhost", "127.0.0.1", "::1")

Say = Callable[[str], None]


@dataclass
class Job:
    """What becomes a job: the files by their names there, the arguments, the environment."""

    verb: str
    arguments: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    remote: list[str] = field(default_factory=list)

    @property
    def entrypoint(self) -> str:
        """The command of the job."""
        return shlex.join(["python", "-m", f"seekray_jobs.{self.verb}", *self.arguments])


def submit(
    verb: str,
    file: str,
    extra_args: Sequence[str] = (),
    *,
    address: str | None = None,
    ship_data: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Start `verb` on the cluster at `address`; `{job_id, status, exit_code}`.

    file: the experiment of train and tune, the MODEL of evaluate and predict. Raises UserError before
    anything is sent where the cluster could not see what the job needs, ClusterError.
    """
    where = settings()
    if verb not in VERBS or importlib.util.find_spec(f"seekray_jobs.{verb}") is None:
        there = ", ".join(v for v in VERBS if importlib.util.find_spec(f"seekray_jobs.{v}"))
        raise UserError(f"submit {verb}: not a verb that runs as a job; there are {there}")
    build = _of_experiment if verb in ("train", "tune") else _of_model
    job = build(verb, file, _split(extra_args), where, ship_data)
    parcel.check_size(job.files, say)
    url = jobs_api.dashboard_url(address)
    with jobs_api.connect(address) as client:
        job.environment |= _environment(job, where, here=jobs_api.is_here(client), say=say)
        with tempfile.TemporaryDirectory() as folder:
            packed = parcel.write(job.files, Path(folder) / "seekray.zip")
            job_id = client.submit_job(
                entrypoint=job.entrypoint,
                runtime_env={"working_dir": str(packed), "env_vars": job.environment},
                metadata={"seekray": verb},
            )
    say(f"job {job_id} at {url}: {job.entrypoint}")
    return {"job_id": job_id, "status": "PENDING", "exit_code": None}


def follow(job_id: str, address: str | None = None) -> Iterator[str]:
    """The job's log as it grows, until the job has ended; a lost connection is taken up again."""
    seen = 0
    with jobs_api.connect(address) as client:
        while True:
            skip = seen
            with contextlib.suppress(RuntimeError, OSError, asyncio.TimeoutError):
                for text in jobs_api.tail(client, job_id):
                    fresh, skip = text[skip:], max(0, skip - len(text))
                    seen += len(fresh)
                    if fresh:
                        yield fresh
            details = _patiently(client, job_id)
            if details.status.value in jobs_api.ENDED:
                if details.driver_exit_code is None and details.message:
                    yield f"{details.message}\n"
                return
            time.sleep(1)


def _patiently(client: JobSubmissionClient, job_id: str, patience_s: float = 60) -> JobDetails:
    """A job's details over a network that is away for a moment."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return client.get_job_info(job_id)
        except OSError:  # requests' errors of connection are
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def log(job_id: str, address: str | None = None) -> str:
    """The job's log so far."""
    with jobs_api.connect(address) as client:
        return str(client.get_job_logs(job_id))


def info(job_id: str, address: str | None = None) -> dict[str, Any]:
    """`{job_id, status, exit_code}`: the code is the driver's, 1 where it has none, null while the job runs."""
    with jobs_api.connect(address) as client:
        return jobs_api.state(client, job_id)


def jobs(address: str | None = None) -> list[dict[str, Any]]:
    """`[{job_id, status, started, entrypoint}]` of the cluster's submitted jobs, newest first."""
    with jobs_api.connect(address) as client:
        found = [j for j in client.list_jobs() if j.submission_id]
    found.sort(key=lambda j: j.start_time or 0, reverse=True)
    return [
        {
            "job_id": j.submission_id,
            "status": j.status.value,
            "started": dt.datetime.fromtimestamp((j.start_time or 0) / 1000, dt.UTC).isoformat(timespec="seconds"),
            "entrypoint": j.entrypoint,
        }
        for j in found
    ]


def stop(job_id: str, address: str | None = None, timeout_s: float = 45) -> dict[str, Any]:
    """End a job as Ctrl-C does, so that its run can be resumed; its state afterwards."""
    with jobs_api.connect(address) as client:
        client.stop_job(job_id)
        deadline = time.monotonic() + timeout_s
        while (state := jobs_api.state(client, job_id))["status"] not in jobs_api.ENDED:
            if time.monotonic() > deadline:
                raise ClusterError(f"job {job_id} was told to stop {timeout_s:g} s ago and is {state['status']}")
            time.sleep(0.5)
        return state


# -- what the job is --------------------------------------------------------------------------


def _split(arguments: Sequence[str]) -> list[str]:
    """`--a=b` as two tokens."""
    return [part for a in arguments for part in (a.split("=", 1) if a.startswith("--") and "=" in a else [a])]


def _values(arguments: Sequence[str], option: str) -> list[tuple[int, str]]:
    """Where the values of an option are, and the values."""
    return [(i + 1, arguments[i + 1]) for i, a in enumerate(arguments[:-1]) if a == option]


def _of_experiment(verb: str, file: str, arguments: list[str], where: Settings, ship_data: bool) -> Job:
    from seekray.experiment_file import load

    experiment = load(file, [value for _, value in _values(arguments, "--set")])
    path = Path(file).resolve()
    root = Path.cwd().resolve()
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    job = Job(verb, [name, *arguments], parcel.files(root) | {name: path})
    given = experiment.storage or ("" if where.storage == _default_storage(where) else where.storage)
    job.storage = _absolute(given) if given else ""
    if experiment.storage and job.storage != experiment.storage:
        job.arguments += ["--set", f"storage={json.dumps(job.storage)}"]
    source = _place_data(job, experiment.data.source, ship_data, "data.source")
    if source != experiment.data.source:
        job.arguments += ["--set", f"data.source={json.dumps(source)}"]
    return job


def _of_model(verb: str, model: str, arguments: list[str], where: Settings, ship_data: bool) -> Job:
    job = Job(verb, [], parcel.files(Path.cwd().resolve()))
    job.storage = _default_storage(where) if where.storage == _default_storage(where) else _absolute(where.storage)
    arguments = list(arguments)
    for index, value in _values(arguments, "--data"):
        arguments[index] = _place_data(job, value, ship_data, "--data")
    for index, value in _values(arguments, "--compare"):
        arguments[index] = _place_model(job, value, where, "compare")
    for _, value in _values(arguments, "--out"):
        if _is_local(value) and not _is_shared(_path(value), job.storage):
            raise UserError(
                f"--out {value}: a path on this machine, where the job would not write; "
                f"give {'' if verb == 'evaluate' else 'an s3:// address or '}a folder that all nodes share, below "
                "SEEKRAY_STORAGE",
                field="out",
            )
        if verb == "evaluate" and not _is_local(value):
            raise UserError(f"--out {value}: evaluate writes into a folder; give one that all nodes share", field="out")
        job.remote.append(value)
    job.arguments = [_place_model(job, model, where, "model"), *arguments]
    return job


def _place_model(job: Job, reference: str, where: Settings, name: str) -> str:
    """The bundle goes along; one that is too large has to be at an address that the cluster reads itself."""
    from seekray.model_ref import resolve

    found = resolve(reference, where)
    files = {f"{SHIPPED}/{name}/{p.relative_to(found.bundle).as_posix()}": p for p in found.bundle.rglob("*") if p.is_file()}
    size = sum(p.stat().st_size for p in files.values())
    if size <= SHIP_LIMIT:
        job.files |= files
        return f"{SHIPPED}/{name}"
    if "://" in reference and not _is_local(reference):
        job.remote.append(reference)
        return reference
    raise UserError(
        f"{reference}: its bundle has {parcel.mib(size)}, over the {parcel.mib(SHIP_LIMIT)} that go along; "
        "train with storage on s3:// and give the bundle's s3:// address"
    )


def _place_data(job: Job, source: str, ship: bool, field_name: str) -> str:
    """The source as the job sees it. Raises UserError where it would not."""
    if source.startswith("sample:") or not _is_local(source):
        job.remote.append(source)
        return source
    path = _path(source)
    if not path.exists():
        if Path(source).is_absolute():
            return source  # a path of the cluster's own, perhaps; the job says if it is not
        raise UserError(f"{field_name}: {source} is not there", field=field_name)
    if _is_shared(path, job.storage):
        return str(path)
    files = (
        {path.name: path}
        if path.is_file()
        else {p.relative_to(path.parent).as_posix(): p for p in path.rglob("*") if p.is_file()}
    )
    size = sum(p.stat().st_size for p in files.values())
    elsewhere = "put it where all nodes see it (s3://…, gs://…, a shared folder) or take a sample:"
    if size > SHIP_LIMIT:
        raise UserError(
            f"{field_name}: {path} is on this machine, where the cluster cannot see it, and its {parcel.mib(size)} are over "
            f"the {parcel.mib(SHIP_LIMIT)} that --ship-data sends; {elsewhere}",
            field=field_name,
        )
    if not ship:
        raise UserError(
            f"{field_name}: {path} is on this machine, where the cluster cannot see it; add --ship-data to send "
            f"its {parcel.mib(size)} along, or {elsewhere}",
            field=field_name,
        )
    job.files |= {f"{SHIPPED}/{name}": p for name, p in files.items()}
    return f"{SHIPPED}/{path.name}"


def _is_local(source: str) -> bool:
    return "://" not in source or source.startswith("file://")


def _path(source: str) -> Path:
    text = urllib.parse.unquote(urllib.parse.urlsplit(source).path) if source.startswith("file://") else source
    return Path(text).expanduser().resolve()


def _absolute(uri: str) -> str:
    return _path(uri).as_uri() if _is_local(uri) else uri


def _default_storage(where: Settings) -> str:
    return (where.home / "storage").as_uri()


def _is_shared(path: Path, storage: str) -> bool:
    """On a network file system, or below a storage folder, which who names it promises to be shared."""
    if storage and _is_local(storage) and storage != _default_storage(settings()) and path.is_relative_to(_path(storage)):
        return True
    return parcel.on_network_file_system(path)


def _environment(job: Job, where: Settings, *, here: bool, say: Say) -> dict[str, str]:
    """What the job finds in its environment. here: the cluster is this machine and no other."""
    # A stopped job gets Ctrl-C and time to leave a run that can be resumed.
    found = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30", "PYTHONUNBUFFERED": "1"}
    if not job.storage and not here and job.verb in ("train", "tune"):
        raise UserError(
            "storage: the cluster is not this machine, and what the run leaves would stay there; set SEEKRAY_STORAGE, "
            "or storage in the experiment, to an s3:// address or a folder that all nodes share",
            field="storage",
        )
    found["SEEKRAY_STORAGE"] = job.storage or where.storage
    found["MLFLOW_TRACKING_URI"] = _tracking(where, here=here, say=say)
    if any(uri.startswith("s3://") for uri in (job.storage, *job.remote)):
        found |= {name: os.environ[name] for name in PLACES if os.environ.get(name)}
        for name in PLACES[:2]:
            if not here and urllib.parse.urlsplit(found.get(name, "")).hostname in LOOPBACKS:
                raise UserError(f"{name}={found[name]} is this machine's loopback, which the cluster cannot reach", field=name)
    if here:  # the cluster's own `python` may be another one than that which has the dependencies
        found["PATH"] = f"{Path(sys.executable).parent}:${{PATH}}"
    return found


def _tracking(where: Settings, *, here: bool, say: Say) -> str:
    parts = urllib.parse.urlsplit(where.tracking_uri)
    if parts.scheme in ("http", "https") and (here or parts.hostname not in LOOPBACKS):
        return where.tracking_uri
    say("no tracking server that the cluster can reach: the run is kept in storage, and `seekray sync` brings it here")
    return NO_TRACKING
