"""create_app(): the one place that puts routes, middlewares and resources together."""

from aiohttp import web

from . import views
from .compute.client import compute_ctx
from .settings import Settings

SETTINGS = web.AppKey("settings", Settings)


async def create_app() -> web.Application:
    """Build the Application. Every worker calls it once, inside its own running event loop."""
    settings = Settings.from_env()
    app = web.Application(client_max_size=settings.max_body)
    app[SETTINGS] = settings
    app.cleanup_ctx.append(compute_ctx)
    app.add_routes(views.routes)
    return app
