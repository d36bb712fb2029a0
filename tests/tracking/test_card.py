"""The model card is a pure function of what is known."""

from __future__ import annotations

import json
from pathlib import Path

from seekray.tracking.card import model_card, with_verification


def test_a_card_of_a_bundle_says_what_a_reader_asks(bundle: Path) -> None:
    info = json.loads((bundle / "bundle.json").read_text()) | {"hash": "f" * 64}
    groups = {"breed": [{"value": "cat", "rows": 10, "metrics": {"accuracy": 0.75}}]}
    card = model_card(info, evaluation={"intervals": {"accuracy": [0.4, 0.6]}, "groups": groups})
    for text in ("# pets", "classification", "accuracy | 0.5", "0.4 to 0.6", "By `breed`", "cat", "0.75", "Limits", "f" * 64):
        assert text in card
    assert "pets@champion" in card
    assert "curl" in card
    assert model_card(info) == model_card(info)


def test_a_verification_stands_near_the_top_of_the_card_once(bundle: Path) -> None:
    """Near the top, because a version's description holds the first 5000 characters only."""
    info = json.loads((bundle / "bundle.json").read_text()) | {"hash": "0" * 64}
    card = model_card(info)
    assert "Not yet" in card
    for passed in (False, True):
        card = with_verification(card, {"passed": passed, "doors": ["python", "rest"], "bundle": "0" * 64})
    assert card.count("## Verified") == 1
    assert "Not yet" not in card
    assert "All doors answer alike: python, rest" in card
    assert card.index("## Verified") < card.index("## Data") < card.index("## Limits")
