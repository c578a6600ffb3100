"""The page of the processes, in a real browser, on a real service."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from browser import browse
from conftest import Service

Start = Callable[..., Service]

WIDTHS = (1280, 390)


def processes(role: str) -> str:
    return f"[...document.querySelectorAll('.process[data-role={role}]')]"


def test_shows_the_process_tree_and_what_becomes_of_it(start: Start, tmp_path: Path) -> None:
    service = start("serve", WEB_CONCURRENCY="2", COMPUTE_CONCURRENCY="1")

    async def look() -> None:
        async with browse(f"http://127.0.0.1:{service.admin_port}/", tmp_path) as page:
            tree = {"arbiter": 1, "compute_arbiter": 1, "web": 2, "compute": 1}
            for role, number in tree.items():
                await page.wait_for(f"{processes(role)}.length == {number}")
            await page.wait_for(f"{processes('web')}.every(p => p.dataset.state == 'serving')")

            # what is asked of it is seen to be answered
            async def ask() -> None:
                while True:
                    await asyncio.to_thread(service.get, "/")

            asking = asyncio.create_task(ask())
            await page.wait_for("parseFloat(document.querySelector('.tile b').textContent) > 0")
            asking.cancel()

            # one dies: the exit is told, and its successor serves
            victim = (await asyncio.to_thread(service.get, "/")).json()["worker"]
            os.kill(victim, signal.SIGKILL)
            await page.wait_for("document.body.innerText.includes('killed SIGKILL')")
            await page.wait_for("/web \\d serves/.test(document.body.innerText)")
            await page.wait_for(f"{processes('web')}.length == 2")

            # one is blocked
            blocking = asyncio.create_task(asyncio.to_thread(service.get, "/probe/block/8"))
            await page.wait_for(f"{processes('web')}.some(p => p.dataset.state == 'blocked')")
            await blocking

            for width in WIDTHS:
                await page.resize(width, 800)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate("document.querySelector('#state').textContent") == "ready"
            service.process.send_signal(signal.SIGTERM)
            await page.wait_for("/no answer/.test(document.querySelector('#state').textContent)")

    asyncio.run(look())
    assert service.process.wait(30) == 0


def test_not_where_it_is_turned_off_and_never_on_the_public_port(start: Start) -> None:
    service = start("web", ADMIN_PAGE="false")
    assert service.get("/", admin=True).status == 404
    assert "<html" not in service.get("/").body.decode()


def test_it_is_small_and_asks_nobody_else(start: Start) -> None:
    service = start("web")
    page = service.get("/", admin=True)
    assert len(page.body.splitlines()) <= 400
    assert b"//" not in page.body.replace(b"// ", b"")  # no address
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
