"""An endpoint that enqueues any task, added to a copy of the application under test."""

from importlib import import_module
from typing import Any

from aiohttp import web

client: Any = import_module(".runtime.jobs.client", __package__)
registry: Any = import_module(".runtime.compute.registry", __package__)
views: Any = import_module(".job_views", __package__)


async def enqueue(request: web.Request) -> web.Response:
    task = registry.tasks[request.match_info["task"]]
    job_id = await client.enqueue(task.function, **task.revived(await request.json()))
    response: web.Response = client.accepted(request, job_id)
    return response


views.routes.post("/probe/jobs/{task}")(enqueue)
