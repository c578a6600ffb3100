"""What a message to all costs, and how late it comes: make bench NAME=broadcast

Four workers, 1,000 subscribers, 1,000 messages of 200 bytes a second for ten seconds, published by
all workers in turn: on 125 channels with eight subscribers each, then on one channel with all of
them, at 20 messages a second. Beside it, in the same run, the CPU time for the same messages
through queues of asyncio in one process, which is the least that any of it can cost.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import CODE, PACKAGE

WORKERS, SUBSCRIBERS, SECONDS = 4, 1000, 10
CASES = {"125 channels": (125, 1000), "1 channel": (1, 20)}  # messages a second

APP = """
import asyncio
import json
import os
import time
from pathlib import Path

from aiohttp import web

from .runtime import broadcast

FOLDER = Path(os.environ["BENCH_FOLDER"])
CHANNELS, RATE, WORKERS, SUBSCRIBERS, SECONDS = json.loads(os.environ["BENCH"])


async def work(subscribe, publish):
    late, tasks = [], []

    async def listen(messages):
        async for message in messages:
            late.append(time.monotonic() - message["at"])

    for number in range(SUBSCRIBERS // WORKERS):
        tasks.append(asyncio.create_task(listen(subscribe(f"channel {number % CHANNELS}"))))
    await asyncio.sleep(2)  # until all workers listen
    began, used, sent = time.monotonic(), time.process_time(), 0
    while (now := time.monotonic() - began) < SECONDS:
        while sent < now * RATE / WORKERS:
            message = {"at": time.monotonic(), "text": "x" * 160}
            await publish(f"channel {sent % CHANNELS}", message)
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.sleep(2)
    used = time.process_time() - used
    for task in tasks:
        task.cancel()
    return {"late": late, "used": used, "sent": sent}


class Queues:
    def __init__(self):
        self.channels = {}

    def subscribe(self, channel):
        queue = asyncio.Queue()
        self.channels.setdefault(channel, []).append(queue)

        async def messages():
            while True:
                yield await queue.get()

        return messages()

    async def publish(self, channel, message):
        for queue in self.channels.get(channel, ()):
            queue.put_nowait(message)


async def create_app():
    async def measure():
        while not (FOLDER / "go").exists():
            await asyncio.sleep(0.01)
        found = await work(broadcast.subscribe, broadcast.publish)
        (FOLDER / f"{os.getpid()}.tmp").write_text(json.dumps(found))
        (FOLDER / f"{os.getpid()}.tmp").rename(FOLDER / f"{os.getpid()}.json")

    async def hold(app):
        task = asyncio.create_task(measure())
        yield
        task.cancel()

    app = web.Application()
    app.cleanup_ctx.append(hold)
    return app


if __name__ == "__main__":
    queues = Queues()
    print(json.dumps(asyncio.run(work(queues.subscribe, queues.publish))))
"""


def measure(channels: int, rate: int) -> tuple[list[float], float, float, int]:
    """How late messages were, CPU seconds of workers, and of queues, for as many messages."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(CODE / PACKAGE, folder / PACKAGE)
    (folder / PACKAGE / "app.py").write_text(APP)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder),
        "BENCH_FOLDER": str(folder),
        "BENCH": json.dumps([channels, rate, WORKERS, SUBSCRIBERS, SECONDS]),
        "HOST": "127.0.0.1",
        "PORT": "18580",
        "ADMIN_HOST": "127.0.0.1",
        "ADMIN_PORT": "18581",
        "WEB_CONCURRENCY": str(WORKERS),
        "LAME_DUCK": "0",
    }
    service = subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "web"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(5)
        (folder / "go").touch()
        limit = time.monotonic() + SECONDS + 60
        while len(list(folder.glob("*.json"))) < WORKERS and time.monotonic() < limit:
            time.sleep(0.1)
        found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)
    alone = environment | {"BENCH": json.dumps([channels, rate, 1, SUBSCRIBERS, SECONDS])}
    output = subprocess.run(
        [sys.executable, "-m", f"{PACKAGE}.app"], env=alone, capture_output=True, check=True
    ).stdout
    queues = json.loads(output)
    late = [seconds for one in found for seconds in one["late"]]
    sent = sum(one["sent"] for one in found)
    shutil.rmtree(folder)
    assert len(late) == sent * SUBSCRIBERS // channels, "a message was lost"
    used = sum(one["used"] for one in found) / len(late)
    return late, used, queues["used"] / len(queues["late"]), sent


def main() -> None:
    print("| | messages | delivered | p50 | p99 | CPU for one delivered | in-process queue |")
    print("|---|---|---|---|---|---|---|")
    for name, (channels, rate) in CASES.items():
        late, used, least, sent = measure(channels, rate)
        late.sort()
        p50, p99 = (1000 * late[int(len(late) * share)] for share in (0.5, 0.99))
        print(
            f"| {name} | {sent} | {len(late)} | {p50:.1f} ms | {p99:.1f} ms "
            f"| {used * 1e6:.1f} us | {least * 1e6:.1f} us |",
            flush=True,
        )


if __name__ == "__main__":
    main()
