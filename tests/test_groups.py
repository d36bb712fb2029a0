"""Two processes of tests divide the work as tests/conftest.py says."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_files_tests_stay_together(request: pytest.FixtureRequest) -> None:
    """xdist writes a group to the end of a test's id; with a pytest that it does not fit it groups nothing, silently."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not under --dist loadgroup")
    assert request.node.nodeid.endswith(f"@{Path(__file__)}")
