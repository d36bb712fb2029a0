"""The Family protocol: what a model family is to the rest of the house."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, get_args, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.data.batches import Batch
from seekray.data.options import Data

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.config import Training
    from seekray.data.prepared import Prepared
    from seekray.data.schema import Schema
    from seekray.models.text_engine import Job, Piece, TextEngine

Modules = dict[str, nn.Module]


class ModelConfig(BaseModel):
    """Base of the families' configs: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    # Of a model that another starts from (`init_from`), what is not taken.
    own: ClassVar[frozenset[str]] = frozenset({"init_from"})


class RequestConfig(ModelConfig):
    """Base of what a caller may ask of the generative families. JSON has types: `true` or "3" is no number."""

    @field_validator("*", mode="before")
    @classmethod
    def _typed(cls, value: Any, info: ValidationInfo) -> Any:
        # Not pydantic's strict mode, which would also refuse lists for tuples and 3.0 for 3.
        known = _types(cls.model_fields[info.field_name or ""].annotation)
        if known & {int, float} and not known & {Any, str} and _holds_other(value):
            raise ValueError("expected a number")
        return value


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    return {annotation}.union(*map(_types, get_args(annotation)))


def _holds_other(value: Any) -> bool:
    """Whether a value, or one within it, is true, false or a text; the names in an object always are."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_other, value))
    return isinstance(value, (bool, str))


class StepSession(Protocol):
    """What a step sees of the session; it owns synchronisation, accumulation and clipping."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""

    def backward(self, loss: Tensor, modules: Sequence[nn.Module]) -> bool:
        """Add the gradients of `loss`, this rank's sum over rows divided by `batch.global_rows`.

        Returns True when the gradients of the whole global batch are in place: step and zero then.
        """


class Batches(Protocol):
    """Batches of one rank; iterating goes on from the position and ends with the epoch."""

    num_rows: int
    steps_per_epoch: int
    epoch: int
    step: int

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Family(Protocol):
    """One model family. Instances hold no state: modules and configs are passed in."""

    tasks: ClassVar[tuple[str, ...]]
    Config: ClassVar[type[ModelConfig]]

    def check(self, config: Any, task: str, data: Data, training: Training) -> None:
        """Raise ValueError where the parts of an experiment contradict each other."""

    def prepare(self, data: Data, task: str, config: Any) -> Prepared:
        """Read, check, split and transform an experiment's data. Raises DataError."""

    def schema(self, value: Mapping[str, Any], files: Mapping[str, bytes]) -> Schema:
        """The schema of `to_json` and `files`."""

    def build(self, config: Any, schema: Any) -> Modules:
        """Freshly initialised modules."""

    def optimizers(self, modules: Modules, training: Training) -> dict[str, Optimizer]:
        """An optimizer for each set of parameters that takes its own turn."""

    def batches(self, dataset: Any, training: Training, *, evaluate: bool = False, **where: Any) -> Batches:
        """Batches for training or, in the data's order and of any size, for evaluation.

        `where` is rank, world_size, device, dtype and pin_memory.
        """

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        """One part of a step. Returns this rank's share of each figure: summed over ranks it is the step's."""

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        """Figures of each row, first dimension B: gathered over ranks, they go to `metrics`."""

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        """Metrics over all rows of `eval_step`."""

    def objective(self, task: str) -> tuple[str, bool]:
        """The metric that picks the best weights, and whether higher is better."""

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        """Outputs (B, C) of rows: logits, or standardised values for regression."""


@runtime_checkable
class Released(Protocol):
    """A family whose bundle has other weights than the training: adapters that are merged, say."""

    def release(self, config: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The config and `module/key` weights of the bundle."""


class Frugal(Family, Protocol):
    """A family that says which settings of the model its `prepare` looks at: trials that differ in others share the data."""

    prepares_by: ClassVar[tuple[str, ...]]


class Generative(Family, Protocol):
    """A family that also makes data. A model is a generator where its schema has no targets."""

    Request: ClassVar[type[BaseModel]]  # what a caller may ask for, a `RequestConfig`

    def generate(self, modules: Modules, schema: Any, request: Any) -> pa.Table:
        """What is asked for, as a table. The same request with the same seed gives the same table."""

    def examples(self, schema: Any, held_out: pa.Table) -> list[dict[str, Any]]:
        """A few small requests with seeds: the bundle keeps them with their answers."""


class Textual(Generative, Protocol):
    """A generative family whose texts grow a token at a time."""

    def stream(self, modules: Modules, schema: Any, request: Any) -> Iterator[Piece]:
        """Every token of what is asked for, as it is made; the texts are those of `generate`."""

    def jobs(self, schema: Any, request: Any) -> list[Job]:
        """The texts of a request, by the number of the prompt and of the sample. Raises DataError."""

    def engine(self, modules: Modules, schema: Any, rows: int, cached_tokens: int | None = None) -> TextEngine:
        """What makes the texts of many requests together, up to `rows` at a time, with room for so many tokens at once."""

    def embed(self, modules: Modules, schema: Any, texts: Sequence[str | Sequence[int]]) -> list[tuple[int, Tensor]]:
        """Tokens and a vector (C,) of each text. Raises DataError."""

    def logits(self, modules: Modules, tokens: Tensor) -> Tensor:
        """Of the token after each one, ids (B, T) -> (B, T, V)."""


class Watched(Generative, Protocol):
    """A generative family whose training is watched: figures in words, and what it makes so far."""

    def remarks(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """What the newest epoch's figures mean, where they are not as they should be."""

    def sheet(self, modules: Modules, schema: Any) -> tuple[str, bytes]:
        """A file's suffix and content: a few of what it makes now, the same noise each time."""


class Sharded(Family, Protocol):
    """A family whose weights can be cut over the workers (`resources.shard`).

    Its steps call modules, not their methods: weights are gathered as a forward pass begins.
    """

    def shards(self, modules: Modules) -> list[nn.Module]:
        """Parts of the modules that run one after another: only one at a time is gathered. The rest stays so for the step."""


def textual(family: Family) -> Textual | None:
    """The family, where it is one that makes texts."""
    return cast("Textual", family) if hasattr(family, "stream") else None


def watched(family: Family) -> Watched | None:
    """The family, where it is one that is watched."""
    return cast("Watched", family) if hasattr(family, "remarks") and hasattr(family, "sheet") else None
