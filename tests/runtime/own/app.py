"""The application under test: in the place of the user's, which the runtime's tests never need."""

from importlib import import_module
from importlib.util import find_spec

from aiohttp import web

from . import body_probes, typed_views, views
from .probes import with_probes
from .settings import SETTINGS, Settings

if find_spec(f"{__package__}.job_views"):
    import_module(f"{__package__}.job_views")


async def create_app() -> web.Application:
    settings = Settings.from_env()
    app = web.Application(client_max_size=settings.max_body)
    app[SETTINGS] = settings
    app.add_routes(views.routes)
    app.add_routes(body_probes.routes)
    app.add_routes(typed_views.routes)
    return app


create_app = with_probes(create_app)
