"""Runs a command while requests are sent: under_load.py URL COMMAND...

Half of the clients keep their connections, half open one for each request. Nothing is sent again.
Ends with the code of the command, or with 1 where a request was not answered with 200.
"""

import asyncio
import runpy
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOAD = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "runtime" / "load.py"))["Load"]
CLIENTS = 4
AFTERWARDS = 10  # seconds that requests go on for: the last pod of a roll-out has yet to end
PATIENCE = 60  # seconds that the last answers may take


async def under_load(url: str, command: list[str]) -> int:
    at = urlsplit(url)
    loads: list[Any] = [
        LOAD(at.port or 80, at.path or "/", keep_alive=keep_alive, host=at.hostname)
        for keep_alive in (True, False)
    ]
    for load in loads:
        load.start(CLIENTS)
    process = await asyncio.create_subprocess_exec(*command)
    code = await process.wait()
    await asyncio.sleep(AFTERWARDS)
    async with asyncio.timeout(PATIENCE):
        results = [await load.stop() for load in loads]
    for kind, result in zip(("kept", "new"), results, strict=True):
        print(f"{kind} connections: {dict(result.answers)}, {len(result.failures)} failures")
        print(*result.failures[:20], sep="\n")
    lost = any(result.failures or result.answers.keys() != {200} for result in results)
    return code or int(lost)


if __name__ == "__main__":
    sys.exit(asyncio.run(under_load(sys.argv[1], sys.argv[2:])))
