"""A generative model as a Serve application: texts by OpenAI's interface, rows and images by our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seekray_serve.generate.rows import RowApp
from seekray_serve.generate.texts import TextApp
from seekray_serve.options import Limits
from seekray_serve.replica import deployed

if TYPE_CHECKING:
    from ray.serve import Application as ServeApplication

    from seekray_serve.generate.application import GenerationApp


def load(bundle: str, limits: Limits, *, name: str, version: str | None) -> GenerationApp:
    """The application of a bundle folder."""
    from seekray.generator import Generator
    from seekray.models.family import textual

    generator = Generator.load(bundle, name=name, version=version)
    return (TextApp if textual(generator.family) else RowApp)(generator, limits)


def build(args: Mapping[str, Any]) -> ServeApplication:
    """The Serve application of one model, for `serve deploy` (`import_path: seekray_serve.generation:build`).

    args: see `replica.deployed`.
    """
    return deployed(args, load)
