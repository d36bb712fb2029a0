"""Something to read before the questions: Python's manual and short texts about the countries of examples/countries.csv.

    python examples/country_texts.py [OUT]        (default: country-texts.jsonl)

The texts state the facts that examples/questions.py asks for, in sentences; none of them is a question or has the wording of
one. Every country has several, each with its facts in another order and other words. Writes a row a text, in mixed order.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

SENTENCES = {
    "capital": [
        "{c} has its capital in {v}.", "The government of {c} sits in {v}, the capital.", "{v} is the capital city of {c}.",
        "As its capital {c} has {v}.", "The capital, {v}, is the best known city of {c}.",
    ],
    "continent": [
        "{c} lies in {v}.", "{c} is a country of the continent {v}.", "A map of {v} shows {c}.", "{c} is a part of {v}.",
        "As for its continent, {c} is in {v}.",
    ],
    "currency": [
        "{c} has the {v} as its currency.", "Prices in {c} are given in {v}.", "The {v} is the currency of {c}.",
        "In the shops of {c} a currency called {v} is taken.", "As its currency {c} has the {v}.",
    ],
    "language": [
        "In {c} most people speak {v}.", "{v} is the language of {c}.", "{c} has {v} as its language.",
        "Books in {c} are printed in {v}.", "As its language {c} has {v}.",
    ],
}  # fmt: skip
TEXTS = 10  # for each country


def about(row: dict[str, str], draw: random.Random) -> str:
    """A text with all facts of a country."""
    facts = draw.sample(list(SENTENCES), len(SENTENCES))
    return " ".join(draw.choice(SENTENCES[f]).format(c=row["country"], v=row[f]) for f in facts)


def rows() -> list[dict[str, str]]:
    """All texts; the same ones whenever they are made on one version of Python."""
    from pydoc_data.topics import topics

    draw = random.Random(0)
    with (Path(__file__).parent / "countries.csv").open(encoding="utf-8", newline="") as file:
        texts = [about(row, draw) for row in csv.DictReader(file) for _ in range(TEXTS)]
    texts += dict.fromkeys(p for text in topics.values() for p in text.split("\n\n"))
    draw.shuffle(texts)
    return [{"text": text} for text in texts]


def main(out: str) -> None:
    """Write them as JSON lines."""
    Path(out).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows()), encoding="utf-8")
    print(f"{len(rows())} texts in {out}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "country-texts.jsonl")
