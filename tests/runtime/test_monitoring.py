"""The rules, the dashboard and the documents speak of metrics that the service has, and of all."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Service, free_port, wait_for
from overlay import PROJECT

Start = Callable[..., Service]
Rule = dict[str, Any]

MONITORING = PROJECT / "k8s" / "monitoring"
DASHBOARD = MONITORING / "dashboards" / "service.json"
GROUPS = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]["groups"]
RULES: list[Rule] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
FROM_PROMETHEUS = {"up"}


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def the_job() -> str:
    """What the service is called in the rules."""
    return re.search(r'job="([^"]+)"', ALERTS["ScrapeFailing"]["expr"])[1]  # type: ignore[index]


# --- alerts, in a time that promtool makes up

FIRING = "count by (alertname) (ALERTS{alertstate='firing'})"
INSTANCE = 'instance="a:8081"'
ABORTED = 'http_responses_aborted_total{{route="/", status="200", by="{}"}}'
HEALTHY = {
    'http_requests_total{route="/", status="200"}': "0+6000x400",
    'http_requests_total{route="/", status="500"}': "0+1x400",
    'http_request_duration_seconds_bucket{le="0.5"}': "0+5999x400",
    "http_request_duration_seconds_count{}": "0+6001x400",
    ABORTED.format("client"): "0+60x400",
    ABORTED.format("drain"): "0+60x400",
    ABORTED.format("error"): "0+1x400",
    'worker_exits_total{reason="recycled", detail=""}': "0+10x400",
    'worker_exits_total{reason="killed", detail="SIGKILL"}': "0x200 1x200",
    'compute_worker_exits_total{reason="crashed", detail="1"}': "0x400",
    'workers{state="wanted"}': "2x400",
    'workers{state="live"}': "2x380 1x2 2x20",
    'compute_workers{state="wanted"}': "2x400",
    'compute_workers{state="live"}': "2x400",
    'event_loop_lag_seconds{worker="2"}': "0.2x400",
    'event_loop_last_turn_timestamp_seconds{worker="2"}': "0+60x400",
    'event_loop_busy_seconds_total{worker="2"}': "0+40x400",
    'event_loop_busy_seconds_total{worker="9"}': "0+60x400",  # whose worker is gone
    'worker_info{worker="2", role="web"}': "1x400",
    "compute_rejected_total{}": "5x400",
    "up{}": "1x380 0x2 1x20",
    "metrics_degraded{}": "0x400",
    "metrics_folder_free_bytes{}": "20000000x400",
    "metrics_folder_size_bytes{}": "25000000x400",
}
OK, FAILED, FAST = list(HEALTHY)[:3]
LAG, LAST_TURN, BUSY = list(HEALTHY)[14:17]
KILLED, CRASHED = list(HEALTHY)[8:10]
# a request a second, all fast; and 100 websockets, open for long, that a roll-out ends
ROLLED_OUT = {
    OK: "0+60x400",
    FAILED: "0x400",
    'http_requests_total{route="/chat", status="101"}': "100x400",
    'http_responses_aborted_total{route="/chat", status="101", by="drain"}': "0x388 100x20",
    FAST: "0+60x400",
    "http_request_duration_seconds_count{}": "0+60x388 23380+60x20",
    **{ABORTED.format(by): "0x400" for by in ("client", "drain", "error")},
}
# what happens -> the series that differ from a healthy service's, and the alert, where there is one
CASES: dict[str, tuple[dict[str, str], str]] = {
    "all is well": ({}, ""),
    "two percent fail since an hour": ({FAILED: "0x330 0+120x70"}, "AvailabilityBurnsFast"),
    "two percent are cut short": (
        {ABORTED.format("error"): "0x330 0+120x70"},
        "AvailabilityBurnsFast",
    ),
    "clients leave": ({ABORTED.format("client"): "0x330 0+600x70"}, ""),
    "a roll-out ends 100 websockets": (ROLLED_OUT, ""),
    "seven in a thousand fail since six hours": ({FAILED: "0+42x400"}, "AvailabilityBurnsSlow"),
    "an incident that is over": ({FAILED: "0x330 0+600x25 15000x45"}, ""),
    "a fifth is slow since an hour": ({FAST: "0+5999x330 1979670+4800x70"}, "LatencyBurnsFast"),
    "seven percent are slow since six hours": ({FAST: "0+5580x400"}, "LatencyBurnsSlow"),
    "nobody asks": (dict.fromkeys([OK, FAILED, *list(HEALTHY)[2:7]], "9x400"), ""),
    "web workers are killed": ({KILLED: "0x380 0+1x20"}, "WorkersDying"),
    "compute workers crash": ({CRASHED: "0x380 0+1x20"}, "WorkersDying"),
    "a worker stays away": ({'workers{state="live"}': "2x380 1x20"}, "WorkersMissing"),
    "a task's stays away": ({'compute_workers{state="live"}': "2x380 1x20"}, "WorkersMissing"),
    "a loop stood still": ({LAG: "0.2x385 3x1 0.2x20"}, "LoopBlocked"),
    "a loop stands still": ({LAST_TURN: "0+60x388 23280x20"}, "LoopBlocked"),
    "the loops are always busy": ({BUSY: "0+57x400"}, "Saturated"),
    "the queue is full": ({"compute_rejected_total{}": "0x370 0+5x30"}, "ComputeRejecting"),
    "the pod does not answer": ({"up{}": "1x380 0x20"}, "ScrapeFailing"),
    "there is no pod": ({"up{}": ""}, "ScrapeFailing"),
    "metrics are lost": ({"metrics_degraded{}": "0x380 1x20"}, "MetricsFolderFull"),
    "room is short": ({"metrics_folder_free_bytes{}": "2000000x400"}, "MetricsFolderFull"),
}


def test_every_alert_fires_and_does_not(tmp_path: Path) -> None:
    promtool = tool("promtool")
    assert {alert for _, alert in CASES.values()} == {"", *ALERTS}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    cases = []
    for title, (changes, fires) in CASES.items():
        series = {
            name.replace("{", f'{{job="{the_job()}", {INSTANCE}, '): values
            for name, values in (HEALTHY | changes).items()
            if values
        }
        firing = [{"labels": f'{{alertname="{fires}"}}', "value": 1}] if fires else []
        cases.append(
            {
                "name": title,
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [{"expr": FIRING, "eval_time": "6h30m", "exp_samples": firing}],
            }
        )
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": GROUPS}))
    command = [tool("promtool"), "check", "rules", "--lint-fatal", str(rules)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do() -> None:
    runbook = (PROJECT / "docs" / "runbook.md").read_text()
    headings = {line.removeprefix("## ") for line in runbook.splitlines() if line[:3] == "## "}
    assert headings == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


# --- the real Prometheus

RATE = 100  # requests a second
WINDOW = 10  # seconds
SETTLED = 5  # seconds until the load is steady and each series has two samples
NAMES = re.compile(r"([a-z][a-z_]+)\{")
ALTERNATIVES = re.compile(r'__name__=~"([a-z_|]+)"')
IN_WORDS = re.compile(r"`((?!container_|jobs_)[a-z_]+_(?:total|seconds|bytes|info|fds))`")
# of checks and scheduled work, which the service has none of
OF_THEIR_OWN = {"ready_check", "scheduled_runs_total", "scheduled_run_seconds"}
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def panels() -> list[tuple[str, list[tuple[str, str]]]]:
    """Title, and expression and legend of each target, with the variables filled in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        targets = [
            (
                target["expr"]
                .replace("$job", the_job())
                .replace("[$__rate_interval]", f"[{WINDOW}s]"),
                target["legendFormat"],
            )
            for target in panel.get("targets", [])
        ]
        if panel["type"] != "row":
            found.append((panel["title"], targets))
    return found


def named(expression: str) -> set[str]:
    found = set(NAMES.findall(expression))
    for names in ALTERNATIVES.findall(expression):
        found |= set(names.split("|"))
    return {SUFFIXES.sub("", name) for name in found}


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        asked = {"query": expression} | ({"time": str(at)} if at else {})
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result

    def ready(self) -> bool:
        try:
            return bool(self.query("up"))
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, service: Service) -> Iterator[Prometheus]:
    port = free_port()
    targets = [{"targets": [f"127.0.0.1:{service.admin_port}"]}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": the_job(), "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    command = [tool("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        server = Prometheus(port)
        wait_for(server.ready)
        yield server
    finally:
        process.terminate()
        process.wait()


async def cut_short(service: Service) -> None:
    with suppress(http.client.IncompleteRead):
        await asyncio.to_thread(service.get, "/probe/stream/1")


async def steadily(service: Service, seconds: float) -> list[float]:
    """Requests at RATE, each on a connection of its own; when each of them was answered."""
    answered = []

    async def ask() -> None:
        for _ in range(3):  # again, where a worker died of it
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
                writer.write(b"GET /greet/you HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
                data = await reader.read()
                writer.close()
            except OSError:
                continue
            if data.startswith(b"HTTP/1.1 200"):
                answered.append(time.time())
                return

    loop = asyncio.get_running_loop()
    asked: list[asyncio.Task[None]] = []
    others: list[asyncio.Task[Any]] = []
    began = loop.time()
    for number in range(int(seconds * RATE)):
        await asyncio.sleep(began + number / RATE - loop.time())
        asked.append(asyncio.create_task(ask()))
        if number % RATE == 0:
            others += [
                asyncio.create_task(asyncio.to_thread(service.get, path))
                for path in ("/nowhere", "/probe/error", "/primes/1000")
            ]
            others.append(asyncio.create_task(cut_short(service)))
    await asyncio.gather(*asked, *others)
    return answered


def compute_worker(service: Service) -> int:
    """A process at the bottom of the tree, that no web worker is."""
    web = set(service.workers())
    return next(pid for pid in reversed(service.processes()) if pid not in web)


@pytest.mark.timeout(120)
def test_prometheus_sees_what_is_true(start: Start, tmp_path: Path) -> None:
    tool("prometheus")
    service = start("serve", ACCESS_LOG="false")
    with prometheus(tmp_path, service) as server:

        async def load() -> list[float]:
            under_load = asyncio.create_task(steadily(service, SETTLED + WINDOW + 1))
            await asyncio.sleep(SETTLED)
            for victim in (service.get("/").json()["worker"], compute_worker(service)):
                os.kill(victim, signal.SIGKILL)
            return await under_load

        answered = asyncio.run(load())
        at = answered[-1] - 0.2
        time.sleep(2)

        # rates, right to 1 %: between the samples that Prometheus looks at
        route = f'http_requests_total{{job="{the_job()}", route="/greet/{{name}}", status="200"}}'
        (samples,) = server.query(f"{route}[{WINDOW}s]", at)
        times = [float(when) for when, _ in samples["values"]]
        truth = sum(times[0] < when <= times[-1] for when in answered) / (times[-1] - times[0])
        (rate,) = server.query(f"sum(rate({route}[{WINDOW}s]))", at)
        assert len(times) >= WINDOW - 1
        assert float(rate["value"][1]) == pytest.approx(truth, rel=0.01)
        (total,) = server.query(f"sum({route})")
        assert len(answered) <= float(total["value"][1]) <= len(answered) + 2  # killed on their way

        # every alert has something to look at, and every panel something to show, once
        for name, rule in ALERTS.items():
            unfiltered = re.sub(r" (==|>|<) ", r" \1 bool ", rule["expr"])
            assert server.query(unfiltered, at), f"{name}: {rule['expr']}"
        for title, targets in panels():
            legends = []
            for expression, legend in targets:
                series = server.query(expression, at)
                assert series, f"{title}: {expression}"
                for one in series:
                    text = legend
                    for label, value in one["metric"].items():
                        text = text.replace(f"{{{{{label}}}}}", value)
                    legends.append(text)
            assert len(legends) == len(set(legends)), (title, legends)

        # what is named exists, and what exists is named
        shown = [(name, tuple(sorted(its.items()))) for name, its, _ in service.scrape()]
        assert len(shown) == len(set(shown))
        page = service.get("/metrics", admin=True).body.decode()
        exposed = set(re.findall(r"^# TYPE (\w+) ", page, re.M))
        in_rules = {name for rule in RULES for name in named(rule["expr"])}
        in_panels = {name for _, targets in panels() for e, _ in targets for name in named(e)}
        documents = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
        in_words = {n for d in documents for n in IN_WORDS.findall(d.read_text())}
        table = (PROJECT / "docs" / "metrics.md").read_text()
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert in_rules - exposed <= FROM_PROMETHEUS
        assert (in_panels | in_words) - OF_THEIR_OWN <= exposed
        assert exposed <= documented
        here = {n for n in documented if not n.startswith("jobs_")}  # those are of job workers
        assert here - OF_THEIR_OWN <= exposed
