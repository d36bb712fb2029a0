"""The rewriting of Ray's HAProxy configuration, on the template of the installed Ray."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.serving import free_port, until

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
    config = tmp_path / "node" / "haproxy.cfg"  # Serve's place for it: a folder a node
    config.parent.mkdir()
    config.write_text(
        "global\n    stats socket /nowhere/a.sock mode 666 level admin\ndefaults\n    mode http\n"
        "    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        "frontend prometheus\n    bind :19101\n    mode http\nfrontend http_frontend\n    bind 127.0.0.1:18000\n"
        "    acl is_http-digits path_beg /digits/\n    acl is_http-digits path /digits\n"
        "    use_backend http-digits if is_http-digits\nbackend http-digits\n    http-reuse always\n"
        "    server a 127.0.0.1:19501 check\n    server b 127.0.0.1:19502 check\n    server f 127.0.0.1:19503 check backup\n"
        "listen stats\n  bind *:18404\n  stats enable\n"
    )
    (tmp_path / haproxy.LIMITS).write_text('{"/digits": 10, "/gone": 5}')
    wrapper = haproxy.write_wrapper(tmp_path, binary, "127.0.0.1")
    assert os.stat(wrapper).st_mode & 0o077 == 0
    for _ in range(2):  # a second start finds it rewritten already
        done = subprocess.run([wrapper, "-c", "-f", config], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
    text = config.read_text()
    assert text.count("# seekray:") == 1
    assert "*:18404" not in text
    assert " :19101" not in text
    assert "sc0_conn_cur gt 20\n" in text  # of two replicas; the one for want of others is none
    assert text.index("backend http-digits") < text.index("stick-table") < text.index("server a")


@pytest.mark.skipif(haproxy.find_binary() is None, reason="no HAProxy on this platform")
def test_what_is_too_much_is_refused_before_a_replica_reads_it(tmp_path: Path):
    """A real HAProxy before a replica that does not answer; the refusals have the form that the path's clients read."""
    binary = haproxy.find_binary()
    assert binary
    silent = socket.create_server(("127.0.0.1", 0), backlog=50)
    port, metrics, stats = (free_port() for _ in range(3))
    text = (
        f"global\n    stats socket {tmp_path}/a.sock mode 666 level admin\ndefaults\n    mode http\n    option abortonclose\n"
        "    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n"
        f"frontend prometheus\n    bind :{metrics}\n    mode http\nfrontend http_frontend\n    bind 127.0.0.1:{port}\n"
        "    acl is_d path_beg /digits/\n    acl is_d path /digits\n    use_backend d if is_d\n"
        f"backend d\n    server a 127.0.0.1:{silent.getsockname()[1]}\nlisten stats\n  bind *:{stats}\n  stats enable\n"
    )
    config = tmp_path / "haproxy.cfg"
    config.write_text(haproxy.rewrite(text, public_host="127.0.0.1", error_file="/dev/null", limits={"/digits": 3}))
    process = subprocess.Popen([binary, "-f", str(config)])
    try:
        until(lambda: _listens(port), expected=True)
        waiting = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(3)]
        for connection in waiting:
            connection.request("POST", "/digits/v1/predict", b"{}")
        time.sleep(0.3)
        start = time.monotonic()
        for path, error in (
            ("v1/predict", {"error": {"code": "too_busy", "message": TOLD, "field": None}}),
            ("v2/models/digits/infer", {"error": TOLD, "code": "too_busy", "field": None}),
            ("v1/completions", {"error": {"message": TOLD, "type": "rate_limit_error", "param": None, "code": "too_busy"}}),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("POST", f"/digits/{path}", b"{}")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("retry-after")) == (429, "1")
            assert json.loads(answer.read()) == error
        assert time.monotonic() - start < 1  # of a busy machine
        waiting[0].close()  # one that hangs up makes room
        time.sleep(0.3)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.5)
        connection.request("POST", "/digits/v1/predict", b"{}")
        with pytest.raises(TimeoutError):
            connection.getresponse()
    finally:
        process.kill()
        process.wait()
        silent.close()


TOLD = "3 requests are in flight already; try again in 1 s"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
