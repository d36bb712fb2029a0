"""The data of trials: prepared once for each way of preparing it, in the object store once for all trials that read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from seekray import ray_train
from seekray.augment import augmented
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.models import get_family
from seekray.settings import Settings


@dataclass(frozen=True)
class Ready:
    """prepared: in this process; shared: the reference for the trials."""

    prepared: Prepared
    shared: Any


class Datasets:
    """Prepares on demand; a search over `data.*` has several, of which the newest `kept` stay; trials keep what they read."""

    def __init__(self, settings: Settings, kept: int) -> None:
        self._settings, self._kept = settings, kept
        self._prepared: dict[str, Prepared] = {}
        self._shared: dict[str, Any] = {}

    def prepare(self, experiment: Experiment) -> Prepared:
        """The data as this experiment wants it. Raises DataError."""
        key = _key(experiment)
        if key not in self._prepared:
            self._prepared[key] = augmented(experiment.prepare(), experiment, self._settings)
            for oldest in [k for k in self._prepared if k != key][: -(self._kept - 1)]:
                del self._prepared[oldest]
                self._shared.pop(oldest, None)
        return self._prepared[key]

    def ready(self, experiment: Experiment) -> Ready:
        """The same, in the object store too."""
        prepared, key = self.prepare(experiment), _key(experiment)
        if key not in self._shared:
            self._shared[key] = ray_train.share(prepared)
        return Ready(prepared, self._shared[key])


def _key(experiment: Experiment) -> str:
    """What preparing depends on: the data's options, and the model's where the family does not say which of them."""
    told, family = experiment.as_json(), get_family(experiment.family)
    names = getattr(family, "prepares_by", None)
    model = told["model"] if names is None else {n: told["model"][n] for n in names}
    return json.dumps([told["data"], model, told["task"], told["storage"]], sort_keys=True)
