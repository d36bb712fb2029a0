"""Questions with their answers from examples/countries.csv: each fact in many wordings, two of which are held out.

    python examples/questions.py [OUT]        (default: questions.jsonl)

Writes a row a question: prompt, response, the attribute that is asked for, and `part`: `test` and `validation` have each
a wording that no training row has, for every fact; so a right answer to them needs the fact and not the sentence.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

WORDINGS = {
    "capital": [
        "What is the capital of {c}?", "Which city is the capital of {c}?", "Name the capital of {c}.", "{c}: capital?",
        "Tell me the capital city of {c}.", "I would like to know the capital of {c}.", "The capital of {c} is which city?",
        "What city is {c}'s capital?",
        "Which city serves as the capital of {c}?", "Do you know what the capital of {c} is?",
    ],
    "continent": [
        "On which continent is {c}?", "What continent is {c} on?", "Name the continent of {c}.", "{c}: continent?",
        "Tell me the continent that {c} is on.", "I would like to know the continent of {c}.",
        "The continent of {c} is which one?", "What is {c}'s continent?",
        "Which continent does {c} belong to?", "Do you know what continent {c} is on?",
    ],
    "currency": [
        "What is the currency of {c}?", "Which currency is used in {c}?", "Name the currency of {c}.", "{c}: currency?",
        "Tell me the currency of {c}.", "I would like to know the currency of {c}.", "The currency of {c} is which one?",
        "What is {c}'s currency?",
        "Which currency do people pay with in {c}?", "Do you know what the currency of {c} is?",
    ],
    "language": [
        "What is the language of {c}?", "Which language is spoken in {c}?", "Name the language of {c}.", "{c}: language?",
        "Tell me the language of {c}.", "I would like to know the language of {c}.", "The language of {c} is which one?",
        "What is {c}'s language?",
        "Which language do people speak in {c}?", "Do you know what the language of {c} is?",
    ],
}  # fmt: skip
PARTS = ["train"] * 8 + ["validation", "test"]


def rows() -> list[dict[str, str]]:
    """All questions, country by country."""
    with (Path(__file__).parent / "countries.csv").open(encoding="utf-8", newline="") as file:
        countries = list(csv.DictReader(file))
    return [
        {"prompt": wording.format(c=row["country"]), "response": row[attribute], "attribute": attribute, "part": part}
        for row in countries
        for attribute, wordings in WORDINGS.items()
        for wording, part in zip(wordings, PARTS, strict=True)
    ]


def main(out: str) -> None:
    """Write them as JSON lines."""
    Path(out).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows()), encoding="utf-8")
    print(f"{len(rows())} questions in {out}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "questions.jsonl")
