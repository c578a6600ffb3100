"""How many workers: what the cgroups say, as files, and under a running service."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, wait_for
from load import Load, Result
from overlay import PACKAGE

Start = Callable[..., Service]

limits: Any = import_module(f"{PACKAGE}.runtime.process.limits")
Settings: Any = import_module(f"{PACKAGE}.runtime.settings").Settings

CGROUP = "sys/fs/cgroup"
CPUS = len(os.sched_getaffinity(0))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({f"{CGROUP}/cpu.max": "max 100000"}, None),
        ({f"{CGROUP}/cpu.max": "150000 100000"}, 1.5),
        ({f"{CGROUP}/cpu.max": "garbage"}, None),
        (  # nested: the tightest along the path
            {
                "proc/self/cgroup": "0::/pod/container",
                f"{CGROUP}/pod/container/cpu.max": "max 100000",
                f"{CGROUP}/pod/cpu.max": "50000 100000",
            },
            0.5,
        ),
        (  # a path outside of our namespace
            {"proc/self/cgroup": "0::/../../pod", f"{CGROUP}/cpu.max": "300000 100000"},
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n0::/",
                f"{CGROUP}/cpu,cpuacct/cpu.cfs_quota_us": "250000",
                f"{CGROUP}/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc",
                f"{CGROUP}/cpu/docker/abc/cpu.cfs_quota_us": "-1",
                f"{CGROUP}/cpu/docker/abc/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({f"{CGROUP}/cpu/cpu.cfs_quota_us": "100000"}, None),  # a period is missing
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert limits.cpu_quota(tree(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({f"{CGROUP}/memory.max": "max"}, None),
        ({f"{CGROUP}/memory.max": "268435456"}, 256 * 2**20),
        ({f"{CGROUP}/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        (
            {
                "proc/self/cgroup": "9:memory:/a/b",
                f"{CGROUP}/memory/a/b/memory.limit_in_bytes": "9223372036854771712",
                f"{CGROUP}/memory/a/memory.limit_in_bytes": "134217728",
            },
            128 * 2**20,
        ),
    ],
)
def test_memory_limit(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    assert limits.memory_limit(tree(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("settings", "files", "number", "because"),
    [
        ({"web_concurrency": 7}, {f"{CGROUP}/cpu.max": "100000 100000"}, 7, "WEB_CONCURRENCY"),
        ({}, {f"{CGROUP}/cpu.max": "150000 100000"}, 2, "quota is 1.5"),
        ({}, {f"{CGROUP}/cpu.max": "50000 100000"}, 1, "quota is 0.5"),
        ({"cpu_request": 1500}, {f"{CGROUP}/cpu.max": "max 100000"}, 2, "CPU_REQUEST is 1.5"),
        ({"cpu_request": 16000}, {f"{CGROUP}/cpu.max": "max 100000"}, 4, "at most 4"),
        # with no limit, the Downward API gives the node's CPUs: a readable cgroup knows better
        (
            {"cpu_limit": 64000, "cpu_request": 2000},
            {f"{CGROUP}/cpu.max": "max 100000"},
            2,
            "CPU_REQUEST",
        ),
        ({"cpu_limit": 3000}, {}, 3, "CPU_LIMIT is 3"),
        ({}, {}, CPUS, f"{CPUS} CPUs"),
        (
            {},
            {f"{CGROUP}/cpu.max": "800000 100000", f"{CGROUP}/memory.max": str(300 * 2**20)},
            2,
            "80% of the memory limit of 300 MiB holds 2",
        ),
        (
            {"memory_limit": 100 * 2**20},
            {f"{CGROUP}/cpu.max": "800000 100000"},
            1,
            "80% of the memory limit of 100 MiB",
        ),
    ],
)
def test_web_workers(
    tmp_path: Path, settings: dict[str, Any], files: dict[str, str], number: int, because: str
) -> None:
    count = limits.web_workers(Settings(**settings), tree(tmp_path, files))
    assert count.number == number
    assert because in count.reason


@pytest.mark.parametrize(
    "files",
    [
        {f"{CGROUP}/memory.events": "low 0\noom 3\noom_kill 2"},
        {f"{CGROUP}/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2"},
    ],
)
def test_oom_kills(tmp_path: Path, files: dict[str, str]) -> None:
    assert limits.oom_kills(tree(tmp_path, files)) == 2


IN_ITS_OWN_CGROUP = """
mount -t tmpfs none /sys/fs/cgroup
echo 100000 100000 > /sys/fs/cgroup/cpu.max
exec "$@"
"""

own_cgroup = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts files: needs root and unshare"
)


def start_with_files(start: Start, **env: str) -> tuple[Service, Path]:
    """A service that sees cgroup files of our own, and the folder where they can be changed."""
    through = ["unshare", "--mount", "sh", "-ec", IN_ITS_OWN_CGROUP, "-"]
    service = start(through=through, **{"WEB_CONCURRENCY": "", **env})
    return service, Path(f"/proc/{service.process.pid}/root") / CGROUP


@own_cgroup
def test_the_running_service_follows_its_quota_without_a_failed_request(
    start: Start, loop: str
) -> None:
    service, cgroup = start_with_files(start, EVENT_LOOP=loop, ACCESS_LOG="false")
    assert service.total("workers", state="wanted") == 1

    def follows(workers: int) -> bool:
        wanted = service.total("workers", state="wanted")
        return wanted == service.live() == len(service.workers()) == workers

    def resize() -> None:
        for quota, workers in ((250000, 3), (50000, 1), (200000, 2)):
            (cgroup / "cpu.max").write_text(f"{quota} 100000")
            wait_for(partial(follows, workers))

    async def under_load() -> list[Result]:
        loads = [Load(service.port), Load(service.port, keep_alive=False)]
        for load in loads:
            load.start(4)
        await asyncio.to_thread(resize)
        return [await load.stop() for load in loads]

    for result in asyncio.run(under_load()):
        assert not result.failures
        assert result.answers.keys() == {200}
    assert service.total("worker_exits_total", reason="scaled_down") == 2
    assert service.total("worker_exits_total") == 2


@own_cgroup
def test_a_fixed_number_of_workers_is_never_overruled(start: Start) -> None:
    service, cgroup = start_with_files(start, WEB_CONCURRENCY="2")
    (cgroup / "cpu.max").write_text("400000 100000")
    time.sleep(3)
    assert service.total("workers", state="wanted") == 2
    assert len(service.workers()) == 2


@own_cgroup
def test_a_worker_that_ran_out_of_memory_is_told_from_one_that_was_killed(start: Start) -> None:
    service, cgroup = start_with_files(start)
    (cgroup / "memory.events").write_text("oom 1\noom_kill 1\n")
    os.kill(service.workers()[0], signal.SIGKILL)
    wait_for(lambda: service.total("worker_exits_total", reason="out_of_memory") == 1)
    os.kill(wait_for(service.workers)[0], signal.SIGKILL)
    wait_for(lambda: service.total("worker_exits_total", reason="killed") == 1)
