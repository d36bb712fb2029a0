"""The rewriting of Ray's HAProxy configuration, on the template of the installed Ray."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from seekray_serve.lifecycle import haproxy

pytest.importorskip("ray.serve")


def template() -> str:
    """Ray's template with its variables filled in by hand; a changed template changes this text."""
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    text = HAPROXY_CONFIG_TEMPLATE
    for name, value in {"metrics_port": "9101", "stats_port": "8404", "frontend_host": "127.0.0.1"}.items():
        text = text.replace("{{ config.%s }}" % name, value)  # noqa: UP031
    text = text.replace("{{ config.frontend_port }}", "8000").replace("{{ config.socket_path }}", "/x/a.sock")
    return text.replace("{{ config.error_file_path }}", "/x/500.http")


@pytest.mark.parametrize(("public", "bind"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*"), ("10.1.2.3", "10.1.2.3")])
def test_only_the_public_address_leaves_loopback(public, bind):
    text = haproxy.rewrite(template(), public_host=public, error_file="/x/503.http")
    binds = re.findall(r"(?m)^\s+bind (\S+:\d+)", text)
    assert sorted(binds) == sorted(["127.0.0.1:9101", "127.0.0.1:8404", f"{bind}:8000"])
    assert "mode 666" not in text
    assert "errorfile 503 /x/503.http" in text
    assert re.search(r"frontend http_frontend\n\s+bind .*\n(\s+#.*\n)?\s+no log\n", text)


def test_a_template_that_was_not_foreseen_is_refused():
    with pytest.raises(ValueError, match="statistics"):
        haproxy.rewrite(template().replace("listen stats", "listen other"), public_host="", error_file="x")


@pytest.mark.skipif(haproxy.find_binary() is None, reason="no HAProxy on this platform")
def test_the_wrapper_rewrites_and_becomes_haproxy(tmp_path: Path):
    binary = haproxy.find_binary()
    assert binary
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    stats socket /nowhere/a.sock mode 666 level admin\ndefaults\n    mode http\n"
        "    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        "frontend prometheus\n    bind :19101\n    mode http\nfrontend http_frontend\n    bind 127.0.0.1:18000\n"
        "listen stats\n  bind *:18404\n  stats enable\n"
    )
    wrapper = haproxy.write_wrapper(tmp_path, binary, "127.0.0.1")
    assert os.stat(wrapper).st_mode & 0o077 == 0
    for _ in range(2):  # a second start finds it rewritten already
        done = subprocess.run([wrapper, "-c", "-f", config], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
    text = config.read_text()
    assert text.count("# seekray:") == 1
    assert "*:18404" not in text
    assert " :19101" not in text
