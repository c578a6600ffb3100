"""Endpoints whose work is done later."""

from aiohttp import web

from .runtime import jobs
from .tasks import primes
from .views import routes as routes


@routes.post(r"/primes/{limit:\d{1,7}}")
async def count_primes_later(request: web.Request) -> web.Response:
    limit = int(request.match_info["limit"])
    return jobs.accepted(request, await jobs.enqueue(primes, limit))


@routes.get(r"/jobs/{id:[0-9a-f]{32}}", name="job")
async def job(request: web.Request) -> web.Response:
    found = await jobs.state(request.match_info["id"])
    if found is None:
        raise web.HTTPNotFound(text="no such job; what became of a job is kept for a while only")
    return web.json_response(found)
