"""`seekray init --family rec|gen|lm`: what a stranger's file is to a family other than `net`."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from seekray.data.columns import check_columns
from seekray.data.kinds import infer_kinds
from seekray.data.options import Data
from seekray.data.parse import Rejects, as_array, is_list, is_number, is_text
from seekray.data.text.source import text_files
from seekray.data.times import seconds, times
from seekray.errors import DataError
from seekray.inspect.look import name_of
from seekray.inspect.sampling import take_sample
from seekray.inspect.task import guess_task
from seekray.inspect.texts import scalar

NAMING = ("categorical", "key", "numeric")  # kinds of a column that may tell series apart
STEPS = 3000  # of a generator of rows, which needs many and small ones
MOST_EPOCHS = 1500
# Seconds between two steps → steps of a season, what it is called.
SEASONS = {3600: (24, "a day"), 86400: (7, "a week"), 30.44 * 86400: (12, "a year")}
ADVERSARIAL = {"optimizer": "adam", "lr": "0.001", "weight_decay": "0"}


@dataclass(frozen=True)
class Draft:
    """An experiment's parts, each a mapping of YAML texts; a value's comment stands in it."""

    family: str
    task: str
    reason: str
    name: str
    rows: int | None
    data: Mapping[str, str]
    model: Mapping[str, str]
    training: Mapping[str, str]
    columns: Mapping[str, str]  # what each is taken as
    unsure: Sequence[str] = field(default_factory=list)


def draft(family: str, address: str, targets: Sequence[str]) -> Draft:
    """Look at a source as a family would. Raises DataError where it has nothing for it."""
    if len(targets) > 1:
        raise DataError(f"--family {family} takes one --target, {len(targets)} given", field="data.target")
    target = targets[0] if targets else None
    if family == "lm" and text_files(address) is not None:
        if target:
            raise DataError(f"{address} is plain text, which has no column {target!r}; leave --target out", field="data.target")
        return _language(address, "pretrain", "plain text", {}, {"text": "{tokenizer: bpe}"}, None, short=False)
    sample = take_sample(Data(source=address))
    table = sample.table
    if target is not None:
        check_columns([target], table.column_names, field="--target")
    if not table.num_rows:
        raise DataError(f"{address} has no rows", field="data.source")
    return {"rec": _recurrent, "gen": _generator, "lm": _texts}[family](address, table, target, sample.rows)


def _kinds(table: pa.Table, without: str | None) -> dict[str, str]:
    """Each column's kind, those that no family reads left out; `key` for what tells rows apart."""
    found = {}
    for name in table.column_names:
        if name != without and table.column(name).null_count < table.num_rows:
            try:
                (one,) = infer_kinds(table.select([name]), Data(source="-"))
            except DataError:
                continue
            found[name] = "key" if one.looks_like_key else one.kind
    return found


# ---- rec


def _recurrent(address: str, table: pa.Table, target: str | None, rows: int) -> Draft:
    if target is None:
        raise DataError("--target is missing; give the column to predict or to forecast", field="data.target")
    column = as_array(table.column(target)).drop_null()
    kinds = _kinds(table, target)
    steps = {n: k for n, k in kinds.items() if k in ("sequence", "audio") or (k == "vector" and _is_steps(table, n))}
    times = [n for n, k in kinds.items() if k == "timestamp"]
    if is_list(column.type):
        if not steps:
            raise DataError(f"--target {target} is a list a row, a label a step, but no other column is", field="data.features")
        return _sequences(address, "labelling", f"{target} has a label for each step", target, steps, rows)
    if steps:
        task, reason, unsure = guess_task([table.column(target)], [target])
        if task != "classification":
            raise DataError(f"--target {target}: {reason}; rec classifies sequences, --family net takes numbers", field="task")
        return _sequences(address, task, reason, target, steps, rows, unsure)
    if times and is_number(column.type):
        return _forecast(address, table, target, times[0], kinds, rows)
    texts = {n: "characters" for n, k in kinds.items() if k in ("text", "categorical", "key") and is_text(table.column(n).type)}
    if texts and is_text(column.type):
        task, reason, unsure = guess_task([table.column(target)], [target])
        longest = max(texts, key=lambda n: pc.mean(pc.utf8_length(table.column(n))).as_py() or 0)
        return _sequences(address, task, reason, target, {longest: "characters"}, rows, unsure)
    raise DataError(
        f"{address} has nothing for --family rec with --target {target}; expected a column of lists or sounds, a time column "
        "beside a number to forecast, or a text beside its class",
        field="data.features",
    )


def _is_steps(table: pa.Table, name: str) -> bool:
    return bool(pc.list_value_length(as_array(table.column(name)).drop_null())[0].as_py() > 1)


def _sequences(
    address: str, task: str, reason: str, target: str, steps: Mapping[str, str], rows: int, unsure: Sequence[str] = ()
) -> Draft:
    options = {"audio": "{kind: audio_frames}", "characters": "{kind: characters, ngrams: [1, 3], max_categories: 4000}"}
    features = ", ".join(f"{scalar(n)}: {options.get(k, '{kind: sequence}')}" for n, k in steps.items())
    kind = "stratified" if task == "classification" else "random"
    return Draft(
        "rec", task, reason, name_of(address), rows,
        {"target": scalar(target), "features": f"{{{features}}}",
         "split": f"{{kind: {kind}, test: 0.2, validation: 0.1, seed: 0}}"},
        {"cell": "gru", "hidden_size": "64", "bidirectional": "true              # false for a model that is fed step by step"}
        | ({} if task == "labelling" else {"pooling": "mean                    # last for such a model", "dropout": "0.2"}),
        {"epochs": "30", "batch_size": "32", "lr": "0.005", "clip_norm": "1.0", "schedule": "{kind: one-cycle}"},
        dict(steps), list(unsure),
    )  # fmt: skip


def _forecast(address: str, table: pa.Table, target: str, time: str, kinds: Mapping[str, str], rows: int) -> Draft:
    """One series or several; the step, the season and the windows from the times."""
    stamps = seconds(times(as_array(table.column(time)), time, Rejects(strict=False)))
    one = len(np.unique(stamps)) == len(stamps)
    series = None if one else next((n for n, k in kinds.items() if k in NAMING and _tells_apart(table.column(n), stamps)), None)
    unsure = []
    if not one and series is None:
        unsure.append(f"{time}: times repeat and no column tells the series apart; set data.sequence.id")
    step = _step(table, stamps, series)
    season = next((s for seconds, s in SEASONS.items() if step and abs(step / seconds - 1) < 0.05), None)
    count = 1 if series is None else pc.count_distinct(table.column(series)).as_py()
    horizon = max(1, min(season[0] if season else 12, rows // count // 20))
    history = max(2, min(4 * horizon, rows // count // 8))
    numbers = [target, *(n for n, k in kinds.items() if k == "numeric" and n not in (series, target))]
    parts = [
        f"time: {scalar(time)}",
        f"columns: [{', '.join(map(scalar, numbers))}]",
        f"history: {history}",
        f"horizon: {horizon}",
    ]
    if series:
        parts.insert(1, f"id: {scalar(series)}")
        same = [n for n, k in kinds.items() if k == "categorical" and n != series and _is_static(table, series, n)]
        parts += [f"static: [{', '.join(map(scalar, same))}]"] if same else []
    if season:
        parts.append(f"season: {season[0]}")
    if step:
        parts.append(f"gap: {_duration(2.5 * step)}")
    unsure.append(
        f"history {history} and horizon {horizon}: so many steps are looked at and forecast; columns known in advance go into "
        "data.sequence.future"
    )
    every = f"a value every {_duration(step)}" if step else f"in the order of {time}"
    reason = f"{target} over {time}, {count:,} series, {every}" + (f"; the season is {season[1]}" if season else "")
    return Draft(
        "rec", "forecast", reason, name_of(address), rows,
        {"target": scalar(target), "sequence": f"{{{', '.join(parts)}}}",
         "split": f"{{kind: time, by: {scalar(time)}, test: 0.2, validation: 0.1}}"},
        {"cell": "gru", "hidden_size": "48", "dropout": "0.1",
         "quantiles": "[0.1, 0.5, 0.9]  # what is predicted: the median and a band"},
        {"epochs": "10", "batch_size": "64", "lr": "0.003", "clip_norm": "1.0", "schedule": "{kind: cosine}"},
        dict.fromkeys(numbers, "numeric") | {time: "timestamp"} | ({series: "categorical"} if series else {}), unsure,
    )  # fmt: skip


def _duration(seconds_: float) -> str:
    size, unit = next(
        ((n, u) for n, u in ((86400, "d"), (3600, "h"), (60, "m")) if seconds_ >= n and seconds_ % n == 0), (1, "s")
    )
    return f"{seconds_ / size:g}{unit}"


def _codes(column: Any) -> Any:
    return np.asarray(as_array(column).dictionary_encode().indices.fill_null(-1))


def _tells_apart(column: Any, stamps: Any) -> bool:
    """No series has a time twice."""
    return len(np.unique(np.stack([_codes(column).astype(np.float64), stamps]), axis=1).T) == len(stamps)


def _is_static(table: pa.Table, series: str, name: str) -> bool:
    """One value in each series."""
    pairs = table.select([series, name]).group_by([series, name]).aggregate([])
    return bool(pairs.num_rows == pc.count_distinct(table.column(series)).as_py())


def _step(table: pa.Table, stamps: Any, series: str | None) -> float | None:
    """The usual seconds from a row to the next of its series."""
    if series is not None:
        codes = _codes(table.column(series))
        stamps = stamps[codes == codes[0]]
    gaps = np.diff(np.sort(stamps[np.isfinite(stamps)]))
    return float(np.median(gaps)) or None if len(gaps) else None


# ---- gen


def _generator(address: str, table: pa.Table, target: str | None, rows: int) -> Draft:
    kinds = _kinds(table, None)
    given = {} if target is None else {"condition": f"{scalar(target)}        # given, so that it can be asked for"}
    pictures = [n for n, k in kinds.items() if k == "image"]
    texts = [n for n, k in kinds.items() if is_text(table.column(n).type) and _varied(table.column(n)) and n != target]
    made = {n: k for n, k in kinds.items() if k in ("numeric", "categorical", "boolean", "timestamp") and n not in texts}
    common = ADVERSARIAL | {"ema": "0.999                   # what is kept is the average of the generator's weights"}
    split = "{kind: random, test: 0.2, validation: 0, seed: 0}"
    if pictures:
        features = {pictures[0]: _picture(table.column(pictures[0]))} | ({target: "{kind: categorical}"} if target else {})
        task, reason, columns = (
            "images",
            f"{pictures[0]} has pictures",
            {n: v.split()[1].strip(",}") for n, v in features.items()},
        )
        data = {"features": f"{{{', '.join(f'{scalar(n)}: {v}' for n, v in features.items())}}}"}
        model = {"hidden_size": "32", "latent_size": "64", "discriminator_steps": "2"}
        training = {"epochs": "60", "batch_size": "64"} | common | {"schedule": "{kind: cosine}"}
    elif texts and not any(n != target for n in made):
        task, reason, columns = "texts", f"{texts[0]} has short texts that hardly repeat", {texts[0]: "text"}
        data = {"features": f"[{', '.join(map(scalar, [texts[0], *([target] if target else [])]))}]"}
        model = {"hidden_size": "128", "num_layers": "1", "discriminator_steps": "3"}
        training = {"epochs": "60", "batch_size": "64"} | common | {"lr": "0.0005"}
    else:
        if not made:
            raise DataError(f"{address} has no column that --family gen could make", field="data.features")
        task, reason, columns = "rows", f"{len(made)} columns that rows are made of", made
        data = {"features": f"[{', '.join(map(scalar, made))}]"}
        model = {"discriminator_steps": "5          # batches that the discriminator learns for each of the generator's"}
        epochs = max(1, min(MOST_EPOCHS, round(STEPS * 128 / max(1, 0.8 * rows))))
        training = {"epochs": str(epochs), "batch_size": "128"} | common
    left = [n for n in table.column_names if n not in columns]
    unsure = (
        [f"{', '.join(left[:10])}{', …' if len(left) > 10 else ''}: not made (keys, texts, or of no kind that is)"]
        if left
        else []
    )
    if target is None:
        unsure.append("no column is a condition; with --target NAME its values can be asked for directly")
    model = given | {"loss": "wasserstein      # with gradient penalty: the one that collapses least"} | model
    return Draft("gen", task, reason, name_of(address), rows, data | {"split": split}, model, training, columns, unsure)


def _picture(column: Any) -> str:
    """Options of a column of pictures, after the first: its size, halved until it is small enough to be made in minutes."""
    with Image.open(io.BytesIO(as_array(column).drop_null()[0].as_py())) as first:
        (width, height), grey = first.size, first.mode in ("1", "L", "LA", "I", "I;16", "F")
    while max(width, height) > 64:
        width, height = -(-width // 2), -(-height // 2)
    return f"{{kind: image, size: [{height}, {width}], channels: {1 if grey else 3}}}"


def _varied(column: Any) -> bool:
    return bool(pc.count_distinct(column).as_py() > max(50, len(column) / 2))


# ---- lm


def _texts(address: str, table: pa.Table, target: str | None, rows: int) -> Draft:
    lengths = {
        n: pc.mean(pc.utf8_length(table.column(n))).as_py() or 0
        for n in table.column_names if is_text(table.column(n).type) and n != target
    }  # fmt: skip
    if not lengths:
        raise DataError(f"{address} has no column of texts; expected one, or a .txt file", field="data.text.column")
    longest = max(lengths, key=lambda n: lengths[n])
    if not _varied(table.column(longest)) and lengths[longest] < 20:
        some = ", ".join(map(repr, table.column(longest).drop_null().unique().to_pylist()[:3]))
        raise DataError(f"{address} has no column of texts; {longest} has names that repeat ({some})", field="data.text.column")
    if target is not None:
        _, reason, unsure = guess_task([table.column(target)], [target])
        text = {"target": scalar(target), "text": f"{{column: {scalar(longest)}, tokenizer: char}}"}
        return _language(address, "classify", reason, {longest: "text"}, text, rows, short=True, unsure=unsure)
    pair = [next((n for n in lengths if re.fullmatch(p, n, re.IGNORECASE)), None) for p in (PROMPT, RESPONSE)]
    if pair[0] and pair[1]:
        text = {"text": f"{{prompt: {scalar(pair[0])}, response: {scalar(pair[1])}, tokenizer: bpe}}"}
        reason = f"{pair[0]} and {pair[1]} are pairs; the loss is on the response alone"
        unsure = [
            "from random weights; with model.init_from: MODEL it starts from a trained one, whose shape and tokenizer it takes"
        ]
        return _language(address, "finetune", reason, {n: "text" for n in pair if n}, text, rows, short=True, unsure=unsure)
    text = {"text": f"{{column: {scalar(longest)}, tokenizer: bpe}}"}
    return _language(address, "pretrain", f"{longest} has texts", {longest: "text"}, text, rows, short=False)


PROMPT = r"prompts?|questions?|instructions?|inputs?|source"
RESPONSE = r"responses?|answers?|outputs?|completions?|target"


def _language(
    address: str, task: str, reason: str, columns: Mapping[str, str], data: dict[str, str], rows: int | None,
    *, short: bool, unsure: Sequence[str] = (),
) -> Draft:  # fmt: skip
    split = "{kind: last, test: 0.05, validation: 0.05}" if task == "pretrain" else "{kind: random, test: 0.1, validation: 0.1}"
    size = {"hidden_size": "64", "num_layers": "2"} if task == "classify" else {"hidden_size": "128", "num_layers": "4"}
    vocabulary = {} if task == "classify" else {"vocab_size": "1024"}
    model = (
        vocabulary
        | size
        | {"num_heads": "4", "context_length": "128         # tokens that it can look back on", "dropout": "0.1"}
    )
    training = {
        "epochs": "8", "batch_size": "32" if short else "16", "lr": "0.002" if short else "0.003", "weight_decay": "0.1",
        "clip_norm": "1.0", "schedule": "{kind: cosine, warmup: 0.05, final: 0.1}",
    }  # fmt: skip
    return Draft("lm", task, reason, name_of(address), rows, data | {"split": split}, model, training, columns, list(unsure))
