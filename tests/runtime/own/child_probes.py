"""Endpoints and tasks that start processes, and the processes that they start."""

import asyncio
import multiprocessing
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from aiohttp import web

from .runtime import compute, task

LIFE = 120  # seconds of a child, should a test forget it
kept: list[Any] = []  # so that no child is waited for

routes = web.RouteTableDef()


def fork() -> int:
    if child := os.fork():
        return child
    time.sleep(LIFE)
    os._exit(0)


def pool() -> int:
    """As many libraries do it: a pool that forks, and stays."""
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    kept.append(executor)
    return executor.submit(os.getpid).result()


def process(method: str) -> Callable[[], int]:
    def start() -> int:
        context: Any = multiprocessing.get_context(method)
        child = context.Process(target=time.sleep, args=(LIFE,))
        kept.append(child)
        child.start()
        return int(child.pid)

    return start


def popen() -> int:
    child = subprocess.Popen(["sleep", str(LIFE)])
    kept.append(child)
    return child.pid


async def exec_() -> int:
    child = await asyncio.create_subprocess_exec("sleep", str(LIFE))
    kept.append(child)
    return child.pid


async def in_thread() -> int:
    return await asyncio.to_thread(fork)


WAYS: dict[str, Callable[[], int]] = {
    "fork": fork,
    "pool": pool,
    "mp-fork": process("fork"),
    "mp-spawn": process("spawn"),
    "mp-forkserver": process("forkserver"),
    "popen": popen,
}
ASYNC_WAYS: dict[str, Callable[[], Awaitable[int]]] = {"thread": in_thread, "exec": exec_}


@routes.get("/probe/child/{way}")
async def child(request: web.Request) -> web.Response:
    way = request.match_info["way"]
    pid = WAYS[way]() if way in WAYS else await ASYNC_WAYS[way]()
    return web.json_response({"worker": os.getpid(), "child": pid})


@task
def child_of_task(way: str, seconds: float) -> int:
    pid = WAYS[way]()
    time.sleep(seconds)
    return pid


@task
def doze(turns: int) -> int:
    """Sleeps a tenth of a second so many times."""
    for _ in range(turns):
        time.sleep(0.1)
    return os.getpid()


@routes.get("/probe/doze/{turns}")
async def doze_in_pool(request: web.Request) -> web.Response:
    return web.json_response(await compute.run(doze, int(request.match_info["turns"])))


@routes.get("/probe/child-of-task/{way}/{seconds}")
async def in_pool(request: web.Request) -> web.Response:
    way, seconds = request.match_info["way"], float(request.match_info["seconds"])
    return web.json_response({"child": await compute.run(child_of_task, way, seconds)})
