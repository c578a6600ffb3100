"""Yours: the service's own settings, each from the environment variable of its name in capitals.

`setting(default, parse)` takes what reads the text and raises ValueError with the rule where it is
wrong; with `secret=True` the value is shown as *** wherever settings are shown. Each setting has a
row in docs/settings.md.
"""

from aiohttp import web

from . import runtime
from .runtime import setting


def greeting(text: str) -> str:
    if "{name}" not in text:
        raise ValueError("give a text with {name} in it")
    return text


class Settings(runtime.Settings):
    """The runtime's settings, and your own."""

    greeting: str = setting("Hello, {name}!", greeting)


SETTINGS = web.AppKey("settings", Settings)
