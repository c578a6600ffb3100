"""The settings of the application under test: the runtime's."""

from aiohttp import web

from . import runtime


class Settings(runtime.Settings):
    pass


SETTINGS = web.AppKey("settings", Settings)
