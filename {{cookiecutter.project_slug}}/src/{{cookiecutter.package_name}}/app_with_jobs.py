"""create_app(): the one place that puts routes, middlewares and resources together."""

from aiohttp import web

from . import job_views, views
from .compute.client import compute_ctx
from .jobs.client import jobs_ctx
from .jobs.settings import JobSettings

SETTINGS = web.AppKey("settings", JobSettings)


async def create_app() -> web.Application:
    """Build the Application. Every worker calls it once, inside its own running event loop."""
    settings = JobSettings.from_env()
    app = web.Application(client_max_size=settings.max_body)
    app[SETTINGS] = settings
    app.cleanup_ctx.extend([compute_ctx, jobs_ctx])
    app.add_routes(views.routes)
    app.add_routes(job_views.routes)
    return app
