"""What a spool's segments hold: one small JSON object an event. Imports nothing heavy."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Status = Literal["finished", "failed", "killed"]


class PointJson(TypedDict):
    """One value of one metric at one step."""

    key: str
    value: float
    step: int
    time_ms: int


class Driver(TypedDict):
    """The process that runs a run: enough to tell later, on the same host, whether it still lives."""

    host: str
    pid: int
    began: float


class Start(TypedDict):
    """The run begins or, after other events, goes on."""

    kind: Literal["start"]
    run_id: str
    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    user: str
    time_ms: int
    driver: Driver


class Points(TypedDict):
    """Points in the order they were told."""

    kind: Literal["points"]
    points: list[PointJson]


class Text(TypedDict):
    """A text artifact, inline."""

    kind: Literal["text"]
    name: str
    content: str


class File(TypedDict):
    """An artifact whose bytes are at `path` of the run's storage."""

    kind: Literal["file"]
    path: str
    artifact: str


class Model(TypedDict):
    """A bundle in the run's storage; `register` is the registered model's name."""

    kind: Literal["model"]
    bundle: str
    register: str | None


class Tags(TypedDict):
    """What is learned of the run on its way."""

    kind: Literal["tags"]
    tags: dict[str, str]


class Finish(TypedDict):
    """The end."""

    kind: Literal["finish"]
    status: Status
    message: str
    time_ms: int


Event = Start | Points | Text | File | Model | Tags | Finish
