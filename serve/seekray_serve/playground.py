"""The page at `/` on which the models are tried: one document, one script, one stylesheet, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from seekray_serve.http import HTML, Application, Handler, Headers, Receive, Response, Scope

_FOLDER = Path(__file__).with_name("page")
# What a model calls itself must not run: no inline script or style, nothing from or to anywhere else.
HEADERS: Headers = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
FILES: Mapping[str, tuple[str, bytes]] = {
    "/": ("index.html", HTML),
    "/page.js": ("page.js", b"text/javascript; charset=utf-8"),
    "/page.css": ("page.css", b"text/css; charset=utf-8"),
}


def add(app: Application) -> None:
    """Answer the page's paths; they hold nothing of the models, and ask for no key."""
    for path, (name, content_type) in FILES.items():
        app.add("GET", path, _file((_FOLDER / name).read_bytes(), content_type))


def _file(body: bytes, content_type: bytes) -> Handler:
    async def answer(scope: Scope, receive: Receive) -> Response:
        return Response(body, content_type=content_type, headers=HEADERS)

    return answer
