"""The experiment: frozen pydantic models, cross-field rules at construction.

Nothing after `load` reads YAML. Each field's description is the experiment reference of the docs.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from seekray.data.options import Data, Duration
from seekray.errors import ConfigError
from seekray.models import get_family
from seekray.search_space import Tune

if TYPE_CHECKING:
    from seekray.data.prepared import Prepared


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]


NOT_CHECKED = "not checked, because family is wrong"


def _takes_flags(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_flags(a) for a in typing.get_args(annotation))


class Strict(BaseModel):
    """Base of all parts: frozen, unknown keys and infinite numbers refused, true and false are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flags_as_numbers(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and not _takes_flags(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"{str(value).lower()} given, which is not a number or a text")
        return value


class EarlyStopping(Strict):
    """Stop when the validation metric has not improved for `patience` epochs."""

    patience: int = Field(5, ge=1, description="epochs without an improvement before the run stops")
    min_delta: float = Field(0.0, ge=0, description="an improvement smaller than this does not count")


class Schedule(Strict):
    """How the learning rate moves over the run."""

    kind: Literal["constant", "cosine", "one-cycle", "plateau"] = Field(
        "constant", description="plateau divides the rate by 1/factor when validation stops improving"
    )
    warmup: float = Field(0.0, ge=0, description="steps of linear warm-up; below 1, a fraction of all steps")
    final: float = Field(0.0, ge=0, le=1, description="cosine: the last rate as a fraction of `lr`")
    factor: float = Field(0.5, gt=0, lt=1, description="plateau: the rate is multiplied by this")
    patience: int = Field(3, ge=0, description="plateau: epochs without improvement before that")


class Checkpoints(Strict):
    """What is kept under `storage` while training."""

    keep: int = Field(2, ge=1, description="the newest K are kept, and the best")
    every_steps: int | None = Field(None, ge=1, description="also in the middle of an epoch, every so many steps")
    min_interval: Duration = Field(5.0, description="epochs that end sooner after the last checkpoint write none")


class Training(Strict):
    """How the weights are fitted."""

    epochs: int | None = Field(None, ge=1, description="passes over the training rows; 20 if neither this nor max_steps")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, instead of epochs")
    batch_size: int = Field(64, ge=1, description="rows a step, over all workers together")
    accumulate: int = Field(1, ge=1, description="split each batch into so many parts to save memory; same gradient")
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="learning rate (peak)")
    weight_decay: float = Field(0.01, ge=0, description="decoupled for adamw, L2 for adam and sgd; not on biases and norms")
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm")
    early_stopping: EarlyStopping | None = None
    metric: str | None = Field(None, description="validation metric that picks the best weights; default by task")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an average of the weights, used instead of the last")
    seed: int = Field(0, ge=0, description="of initialisation, shuffling and dropout")
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field("auto", description="auto: bf16 on a GPU that has it, else fp32")
    compile: bool = Field(False, description="torch.compile the modules")
    fused: bool | None = Field(None, description="fused optimizer; null: where the device has it")
    pin_memory: bool | None = Field(None, description="pinned host memory and non-blocking copies; null: on a GPU")
    log_every: int = Field(10, ge=1, description="a point of loss and rate every so many steps")
    checkpoints: Checkpoints = Checkpoints()

    @model_validator(mode="after")
    def _rules(self) -> Training:
        if self.epochs and self.max_steps:
            raise ValueError("training.epochs and training.max_steps are both given; give one (null takes the other out)")
        if self.accumulate > self.batch_size:
            raise ValueError(f"training.accumulate ({self.accumulate}) is over training.batch_size ({self.batch_size})")
        if self.max_steps and self.schedule.warmup >= max(1, self.max_steps):
            raise ValueError(
                f"training.schedule.warmup ({self.schedule.warmup:g} steps) is not below training.max_steps ({self.max_steps})"
            )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"training.momentum is for sgd, not for {self.optimizer}")
        return self


class Resources(Strict):
    """Where the run's workers go."""

    workers: int | tuple[int, int] = Field(
        1, description="0: this process, without Ray; N: Ray Train workers; [min, max]: elastic"
    )
    cpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="CPUs of a worker, may be a fraction; torch's threads follow it; null: 1, or all for workers: 0",
    )
    gpus_per_worker: float | None = Field(None, ge=0, description="null: one where the cluster has GPUs for all, else none")
    shard: bool = Field(
        False, description="cut weights and optimizer state over the workers (FSDP2), for models that fit no single one; lm"
    )
    wait: Duration | None = Field(None, description="wait that long for missing resources (30s, 30m, 2h); null: refuse")
    max_failures: int = Field(3, ge=0, description="times that lost workers are replaced before the run fails")

    @model_validator(mode="after")
    def _rules(self) -> Resources:
        low, high = self.span
        if low < 0 or high < low or (high > low and low < 1):
            raise ValueError(f"resources.workers: {self.workers} given, expected 0 or more, or [min, max] with 1 <= min <= max")
        if self.shard and low < 2:
            raise ValueError(f"resources.shard cuts weights over workers, resources.workers is {self.workers}; give 2 or more")
        return self

    @property
    def span(self) -> tuple[int, int]:
        """Smallest and largest number of workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)


class Autoscaling(Strict):
    """Replicas of an endpoint."""

    min: int = Field(1, ge=0, description="fewest replicas")
    max: int = Field(1, ge=1, description="most replicas")
    target: float = Field(8, gt=0, description="requests in flight that a replica should have")
    up_after_s: float = Field(10, ge=0, description="how long the load must ask for more replicas before they start")
    down_after_s: float = Field(300, ge=0, description="how long the load must ask for fewer before they end")

    @model_validator(mode="after")
    def _rules(self) -> Autoscaling:
        if self.max < self.min:
            raise ValueError(f"serve.autoscaling: max ({self.max}) is below min ({self.min})")
        return self


class Serve(Strict):
    """How a registered version is served."""

    autoscaling: Autoscaling = Autoscaling()
    max_queued_requests: int = Field(1000, ge=1, description="beyond it a replica answers 429 with Retry-After")
    max_batch_rows: int = Field(1024, ge=1, description="most rows of one forward pass")
    max_cached_tokens: int = Field(
        0, ge=0, description="lm: tokens whose keys and values a replica keeps; 0: enough for a full batch of full length"
    )
    max_rows: int = Field(10_000, ge=1, description="most rows of one request")
    max_body_bytes: int = Field(16 * 2**20, ge=1, description="largest request body")
    max_table_rows: int = Field(100_000, ge=1, description="rows of a request whose body is an Arrow stream")
    max_table_bytes: int = Field(256 * 2**20, ge=1, description="bytes of such a table, unpacked")
    num_cpus: float = Field(0.1, ge=0, description="CPUs that a replica reserves")
    num_gpus: float = Field(0, ge=0, description="GPUs that a replica reserves")


class Report(Strict):
    """What the run's report shows besides the metrics."""

    by: tuple[str, ...] = Field((), description="columns by whose values the metrics are also listed")
    importances: bool = Field(True, description="permutation importances on held-out rows")


class Experiment(Strict):
    """One experiment: data, model, training, resources, and what becomes of the result."""

    name: Name
    family: str = Field("net", description="net, rec, gen, lm, or package.module:MyFamily")
    task: str = Field(
        "classification",
        description="net: classification, regression, multilabel; rec: classification, labelling, forecast; gen: rows; "
        "lm: pretrain, finetune, classify",
    )
    data: Data
    model: SerializeAsAny[BaseModel] = Field(default=None, validate_default=True)
    training: Training = Training()
    resources: Resources = Resources()
    register_as: Name | None = Field(None, alias="register", description="name in the model registry")
    serve: Serve = Serve()
    report: Report = Report()
    tune: Tune | None = Field(None, description="what `seekray tune` searches; `train` does not look at it")
    storage: str | None = Field(None, description="folder or s3:// URI of checkpoints, bundles and spool")

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @field_validator("family")
    @classmethod
    def _family_exists(cls, value: str) -> str:
        try:
            get_family(value)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _model_of_family(cls, value: Any, info: Any) -> BaseModel:
        if "family" not in info.data:
            raise ValueError(NOT_CHECKED)
        config = get_family(info.data["family"]).Config
        return value if isinstance(value, config) else config.model_validate(value or {})

    @model_validator(mode="after")
    def _rules(self) -> Experiment:
        family = get_family(self.family)
        if self.task not in family.tasks:
            raise ValueError(f"task: {self.task!r} given, family {self.family} has {', '.join(family.tasks)}")
        if (stop := self.training.early_stopping) and not self.data.split.validation:
            raise ValueError(
                f"training.early_stopping (patience {stop.patience}) needs validation rows, "
                "but data.split.validation is 0; give it a fraction or remove early_stopping"
            )
        if self.training.schedule.kind == "plateau" and not self.data.split.validation:
            raise ValueError("training.schedule.kind: plateau needs validation rows, but data.split.validation is 0")
        if self.training.metric and not self.data.split.validation:
            raise ValueError(
                f"training.metric ({self.training.metric}) is measured on validation rows, but data.split.validation is 0"
            )
        if self.tune and not self.data.split.validation:
            raise ValueError(
                "tune compares trials on validation rows, but data.split.validation is 0; "
                "data.split.validation=0.2 keeps a fifth of the rows for it"
            )
        if self.tune and self.tune.first and self.training.metric not in (None, self.tune.first):
            raise ValueError(
                f"tune.metric ({self.tune.first}) picks each trial's best weights too, and training.metric is "
                f"{self.training.metric}; give one of them"
            )
        if self.training.batch_size < self.resources.span[1]:
            raise ValueError(
                f"training.batch_size ({self.training.batch_size}) is global and below "
                f"resources.workers ({self.resources.span[1]}); each worker needs a row"
            )
        if self.resources.shard and not hasattr(family, "shards"):
            raise ValueError(f"resources.shard: family {self.family} does not say how its weights are cut; lm does")
        if self.resources.shard and self.training.compile:
            raise ValueError("resources.shard and training.compile do not go together; leave one out")
        if self.resources.shard and self.training.fused and self.training.optimizer == "sgd":
            raise ValueError("training.fused: torch has no fused sgd for sharded weights (resources.shard); leave it out")
        if self.data.features is not None:
            read = {*self.data.features, *self.data.key, *self.data.targets, self.data.split.by}
            if unread := [name for name in self.report.by if name not in read]:
                raise ValueError(f"report.by: {', '.join(unread)} is not read; add it to data.key or data.features")
        family.check(self.model, self.task, self.data, self.training)
        return self

    def prepare(self) -> Prepared:
        """Read and transform the data as the family wants it. Raises DataError."""
        data = self.data
        if self.storage and data.text and data.text.shards is None:
            data = data.model_copy(update={"text": data.text.model_copy(update={"shards": f"{self.storage}/tokens"})})
        return get_family(self.family).prepare(data, self.task, self.model)

    def as_json(self) -> dict[str, Any]:
        """Every value, defaults included; `Experiment.model_validate` takes it back."""
        return self.model_dump(mode="json", by_alias=True)
