"""Synthetic rows among the training rows: the source's purpose of a generator, better generalisation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from seekray.data.columns import check_columns
from seekray.data.prepared import Arrays, Prepared
from seekray.errors import ConfigError
from seekray.generator import Generator
from seekray.model_ref import resolve

if TYPE_CHECKING:
    from seekray.config import Experiment
    from seekray.settings import Settings


def augmented(prepared: Prepared, experiment: Experiment, where: Settings) -> Prepared:
    """With `data.augment.rows` synthetic rows after the training rows; validation and test rows stay real.

    Everything fitted is of the real rows alone. Unchanged without `data.augment`. Raises ConfigError where the
    family does not read rows of a table with a target, DataError where the generator lacks a column, and what
    `resolve` raises.
    """
    options = experiment.data.augment
    if options is None:
        return prepared
    train, schema = prepared.train, cast("Any", prepared.schema)
    if not isinstance(train, Arrays) or train.targets is None or set(train.inputs) != {"dense", "categorical"}:
        raise ConfigError(
            f"data.augment is for rows of a table with a target, not for {experiment.family} {experiment.task}",
            field="data.augment",
        )
    generator = Generator.load(resolve(options.model, where).bundle)
    made = generator.generate(rows=options.rows, seed=options.seed)
    check_columns((*(f.name for f in schema.features), *schema.targets), made.column_names, field="data.augment")
    inputs, targets = schema.arrays(made), schema.encode_targets(made)
    numbers = prepared.rows + len(prepared.rejected) + np.arange(len(made))
    together = replace(
        train,
        inputs={name: np.concatenate([array, inputs[name]]) for name, array in train.inputs.items()},
        targets=np.concatenate([train.targets, targets]),
        rows=np.concatenate([train.rows, numbers]),
    )
    warnings = [*prepared.warnings]
    theirs, ours = generator.info["fingerprint"], prepared.fingerprint
    if theirs.get("content") != ours.get("content") or theirs.get("split") != ours.get("split"):
        warnings.append(
            f"data.augment: {options.model} was trained on other rows than the training rows of this run; if rows that are "
            "held out here are among them, the metrics are too good: give both experiments the same source and split"
        )
    print_ = ours | {"augment": f"{generator.hash[:16]} rows {options.rows} seed {options.seed}"}
    return replace(prepared, train=together, warnings=warnings, fingerprint=print_)
