"""The model card is a pure function of what is known."""

from __future__ import annotations

import json
from pathlib import Path

from seekray.tracking.card import model_card


def test_a_card_of_a_bundle_says_what_a_reader_asks(bundle: Path) -> None:
    info = json.loads((bundle / "bundle.json").read_text()) | {"hash": "f" * 64}
    groups = {"breed": [{"value": "cat", "rows": 10, "metrics": {"accuracy": 0.75}}]}
    card = model_card(info, evaluation={"intervals": {"accuracy": [0.4, 0.6]}, "groups": groups})
    for text in ("# pets", "classification", "accuracy | 0.5", "0.4 to 0.6", "By `breed`", "cat", "0.75", "Limits", "f" * 64):
        assert text in card
    assert "pets@champion" in card
    assert "curl" in card
    assert model_card(info) == model_card(info)
