"""Takes pictures of a page: python scripts/photograph.py URL FILE WIDTHxHEIGHT...

Run with the Python of a generated project's .venv, as what drives the browser is made for that.
A picture is taken after a while, as a page shows rates when it has asked more than once.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from browser import browse  # type: ignore[import-not-found]

A_WHILE = 5  # seconds


async def photograph(url: str, file: str, *sizes: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        async with browse(url, Path(profile)) as page:
            for size in sizes:
                width, height = map(int, size.split("x"))
                await page.resize(width, height)
                await asyncio.sleep(A_WHILE)
                await page.screenshot(Path(file.format(width)))


asyncio.run(photograph(*sys.argv[1:]))
