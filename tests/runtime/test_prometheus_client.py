"""Whoever knows prometheus_client meets the same numbers here, over several processes too.

The same steps run here and in its own multiprocess mode, in real processes that live and die.
"""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, copy_code, wait_for
from overlay import PACKAGE
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

Start = Callable[..., Service]

THEATRE = f"""
import json, os, signal, sys, traceback
from pathlib import Path

ours, folder = sys.argv[1] == "ours", sys.argv[2]
os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
if ours:
    from {PACKAGE}.runtime.metrics import exposition, slots, values
    identity = slots.label
else:
    identity = lambda: str(os.getpid())
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client import generate_latest, multiprocess
from prometheus_client.parser import text_string_to_metric_families

class Actor:
    def __init__(self):
        self.steps, self.answers = os.pipe(), os.pipe()
        self.pid, self.alive = os.fork(), True
        if self.pid == 0:
            scope = dict(globals())
            for line in os.fdopen(self.steps[0]):
                try:
                    exec(json.loads(line), scope)
                    answer = ""
                except BaseException:
                    answer = traceback.format_exc()
                os.write(self.answers[1], json.dumps([answer, identity()]).encode() + b"\\n")
            os._exit(0)
        self.reader = os.fdopen(self.answers[0])

    def do(self, code):
        os.write(self.steps[1], json.dumps(code).encode() + b"\\n")
        answer, self.identity = json.loads(self.reader.readline())
        assert not answer, answer

    def die(self):
        self.alive = False
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if not ours:
            multiprocess.mark_process_dead(self.pid)

def scrape():
    if ours:
        text = exposition.Exposition().scrape("")[0]
    else:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        text = generate_latest(registry)
    shown, names = [], {{a.identity: name for name, a in actors.items()}}
    for family in text_string_to_metric_families(text.decode()):
        if not family.name.startswith("x"):
            continue
        shown.append([family.name, family.type, family.documentation])
        for sample in family.samples:
            labels = dict(sample.labels)
            if process := labels.pop("worker" if ours else "pid", None):
                labels["process"] = names[process]
            shown.append([sample.name, labels, sample.value])
    return sorted(shown, key=json.dumps)

def play(steps):
    try:
        for step in steps:
            who, _, code = step.partition(": ")
            if who == "scrape":
                yield scrape()
            elif code == "dies":
                actors[who].die()
            else:
                if who not in actors:
                    actors[who] = Actor()
                actors[who].do(code)
    finally:
        for actor in actors.values():
            if actor.alive:
                actor.die()

for number, steps in enumerate(json.load(sys.stdin)):
    sys.stdout.flush()
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0, steps
        continue
    own = Path(folder, str(number))
    own.mkdir()
    if ours:
        values.install(own)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(own)
    actors = {{}}
    print(json.dumps(list(play(steps))), flush=True)
    os._exit(0)
"""
Scene = list[list[Any]]


def play(folder: Path, stage: str, *plays: str) -> list[list[Scene]]:
    """What each `scrape` among the steps shows; a step is "process: code" or "process: dies"."""
    folder.mkdir()
    steps = [[line.strip() for line in play.strip().splitlines()] for play in plays]
    done = subprocess.run(
        [sys.executable, "-c", THEATRE, stage, str(folder)],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def gauges(mode: str, first: int, second: int) -> str:
    """Two processes set a gauge, one dies, and a third takes its place."""
    make = f"g = Gauge('x', 'help', ['l'], multiprocess_mode='{mode}')"
    return f"""
        a: {make}
        b: {make}
        a: g.labels('l'), g.labels('only a').set(7)
        b: g.labels('l')
        scrape
        b: g.labels('l').set({second})
        a: g.labels('l').set({first})
        scrape
        b: None if '{mode}'.endswith('mostrecent') else g.labels('l').dec(10)
        scrape
        a: dies
        scrape
        c: {make}
        c: g.labels('l')
        scrape
        c: g.labels('l').set(0.5)
        c: g.labels('only c').set(-3)
        scrape
        b: dies
        scrape
        """


OBSERVE = "m.labels('1').observe({}); m.labels('2').observe({})"
CASES = {
    "counters add up": """
        a: c = Counter('x', 'help')
        b: c = Counter('x', 'help')
        scrape
        a: c.inc(1)
        b: c.inc(2)
        scrape
        a: dies
        scrape
        c: c = Counter('x', 'help'); c.inc(4)
        scrape
        """,
    "summaries add up": f"""
        a: m = Summary('x', 'help', ['l']); {OBSERVE.format(1, 2)}
        b: m = Summary('x', 'help', ['l']); {OBSERVE.format(10, 2.5)}
        scrape
        a: dies
        c: m = Summary('x', 'help', ['l']); {OBSERVE.format(100, 0)}
        scrape
        """,
    "histograms add up": f"""
        a: m = Histogram('x', 'help', ['l']); {OBSERVE.format(1, 2)}
        b: m = Histogram('x', 'help', ['l']); {OBSERVE.format(10, 2.5)}
        scrape
        a: dies
        c: m = Histogram('x', 'help', ['l'])
        c: {OBSERVE.format(100, 0)}
        scrape
        """,
    "histograms of other bounds": """
        a: m = Histogram('x', 'help', buckets=(0.25, 1e7)); m.observe(-1); m.observe(1e9)
        b: m = Histogram('x', 'help', buckets=(0.5, 1e7)); m.observe(0.4)
        scrape
        """,
    "a histogram that only one process has": """
        a: h = Histogram('x', 'help', ['view'])
        a: h.labels(view='view1').observe(1)
        b: h = Histogram('x', 'help', ['view'])
        b: h.labels(view='view1').observe(5); h.labels(view='view2').observe(1)
        scrape
        """,
    "all kinds with many labels, in any order": """
        a: names, its = list('abcd'), dict(zip('abcd', 'abcd'))
        a: c = Counter('xc', 'c help', names); c.labels(**its).inc()
        a: g = Gauge('xg', 'g help', names); g.labels(**its).set(1)
        a: h = Histogram('xh', 'h help', names); h.labels(**its).observe(1)
        b: names, its = list('dcba'), dict(zip('abcd', 'abcd'))
        b: c = Counter('xc', 'c help', names); c.labels(**its).inc()
        b: g = Gauge('xg', 'g help', names); g.labels(**its).set(1)
        b: h = Histogram('xh', 'h help', names); h.labels(**its).observe(5)
        scrape
        """,
    "namespace, subsystem and unit": """
        a: names = dict(namespace='x_ns', subsystem='ss', unit='seconds')
        a: Counter('c', 'help', **names).inc(); Gauge('g', 'help', **names).set(1)
        a: Histogram('h', 'help', **names).observe(1); Summary('s', 'help', **names).observe(2)
        scrape
        """,
    "a subclass with names of its own": """
        a: base = dict(namespace='x_default', subsystem='other')
        a: init = lambda self, *its, **more: Counter.__init__(self, *its, **(base | more))
        a: c = type('Own', (Counter,), {'__init__': init})('m', 'help', ['s'], namespace='x_ns')
        a: c.labels('200').inc(); c.labels('404').inc(2)
        scrape
        """,
    "in registries of their own, or none": """
        a: Counter('x', 'help', registry=None).inc()
        a: Counter('x', 'help', registry=CollectorRegistry()).inc(2)
        b: Counter('x', 'help').inc(4)
        scrape
        """,
    "over a fork": """
        a: c = Counter('x', 'help'); g = Gauge('xg', 'help', multiprocess_mode='livesum')
        a: c.inc(2); g.set(2)
        a: pid = os.fork(); pid or (c.inc(), g.inc(5), c._value.get() == 1 and os._exit(0))
        a: assert os.waitpid(pid, 0)[1] == 0; ours or multiprocess.mark_process_dead(pid)
        scrape
        a: c.inc()
        scrape
        """,
    "counters that are reset": """
        a: c = Counter('x', 'help'); c.inc(3)
        a: dies
        b: c = Counter('x', 'help'); c.inc(5); c.reset(); c.inc(1)
        scrape
        b: assert c._value.get() == 1
        """,
    "keys longer than a page, and more of them than fit one": """
        a: c = Counter('x', 'help', ['l'])
        a: c.labels('l' * 300_000).inc(42); c.labels('short').inc(17)
        a: [c.labels(str(n)).inc(n) for n in range(5000)]
        scrape
        a: dies
        b: c = Counter('x', 'help', ['l'])
        b: c.labels('l' * 300_000).inc(1); [c.labels(str(n)).inc(1) for n in range(5000)]
        scrape
        """,
    "numbers that are none": """
        a: g = Gauge('x', 'help', multiprocess_mode='livesum'); g.set(float('inf'))
        b: g = Gauge('x', 'help', multiprocess_mode='livesum'); g.set(1)
        scrape
        a: g.set_to_current_time(); g.set(1e300)
        scrape
        """,
    "timers and exceptions": """
        a: c, g = Counter('xc', 'help'), Gauge('xg', 'help', multiprocess_mode='livesum')
        a: 'with c.count_exceptions(): pass'
        a: exec('try:\\n with c.count_exceptions(): 1/0\\nexcept ZeroDivisionError: pass')
        a: exec('with g.track_inprogress(): g.inc(2)')
        scrape
        """,
}
MODES = ("min", "max", "sum", "mostrecent", "liveall", "livemin", "livemax", "livesum")
for mode in (*MODES, "livemostrecent"):
    CASES[f"gauges, {mode}, up"] = gauges(mode, 1, 2)
    CASES[f"gauges, {mode}, down"] = gauges(mode, 2, -1)


@pytest.mark.timeout(240)
def test_the_numbers_are_those_of_its_multiprocess_mode(tmp_path: Path) -> None:
    ours = play(tmp_path / "ours", "ours", *CASES.values())
    stock = play(tmp_path / "stock", "stock", *CASES.values())
    assert all(len(scene) > 1 for scenes in stock for scene in scenes)
    for case, found, expected in zip(CASES, ours, stock, strict=True):
        assert found == expected, case


def test_a_gauge_of_mode_all_is_kept_until_its_slot_is_taken(tmp_path: Path) -> None:
    """The one difference: there it would be for ever, a series for each process that ever was."""
    make = "g = Gauge('x', 'help'); g.set({})"
    steps = f"""
        a: {make.format(1)}
        b: {make.format(2)}
        a: dies
        scrape
        c: {make.format(3)}
        scrape
        """
    (scenes,) = play(tmp_path / "ours", "ours", steps)
    shown = [[[labels["process"], value] for _, labels, value in scene[1:]] for scene in scenes]
    assert shown == [[["a", 1.0], ["b", 2.0]], [["b", 2.0], ["c", 3.0]]]


# --- over HTTP

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
ACCEPTED = {
    "": PLAIN,
    "*/*": PLAIN,
    "image/png": PLAIN,
    "\xff": PLAIN,
    ";;,=,;version": PLAIN,
    "text/plain;version=a.b": PLAIN,
    "text/plain;version=1.x": PLAIN,
    "text/plain; version=1.0.0": "text/plain; version=1.0.0; charset=utf-8; escaping=underscores",
    "application/openmetrics-text": OPEN,
    "application/openmetrics-text;version=a.b": PLAIN,
    "application/openmetrics-text; version=99.0.0": PLAIN,
    "application/openmetrics-text;version=a.b, application/openmetrics-text;version=1.0.0": OPEN,
    PROMETHEUS_2: OPEN,
    PROMETHEUS_3: f"{OPEN}; escaping=allow-utf-8",
}


def test_any_client_gets_an_answer(start: Start) -> None:
    service = start(WEB_CONCURRENCY="1")
    service.get("/")
    for accept, expected in ACCEPTED.items():
        response = service.get("/metrics", {"Accept": accept}, admin=True)
        assert (response.status, accept) == (200, accept)
        found, text = response.headers["Content-Type"], response.body.decode()
        assert found.startswith(expected), accept
        parse = open_metrics if found.startswith("application") else text_string_to_metric_families
        assert {"http_requests", "metrics_degraded"} <= {family.name for family in parse(text)}

    for accepted in ("gzip", "deflate, gzip;q=0.5", "br,GZIP"):
        packed = service.get("/metrics", {"Accept-Encoding": accepted}, admin=True)
        assert packed.headers["Content-Encoding"] == "gzip"
        assert b"http_requests_total" in gzip.decompress(packed.body)
    for refused in ("", "identity", "gzip;q=0, br", "gzip; q=0.0", "notgzip"):
        plain = service.get("/metrics", {"Accept-Encoding": refused}, admin=True)
        assert plain.headers["Content-Encoding"] is None
        assert b"http_requests_total" in plain.body


def test_names_choose_samples(start: Start) -> None:
    service = start(WEB_CONCURRENCY="1")
    service.get("/")
    asked = ("http_requests_total", "http_request_duration_seconds_sum", "metrics_degraded", "no")
    query = "&".join(f"name[]={name}" for name in asked)
    text = service.get(f"/metrics?{query}", admin=True).body.decode()
    lines = text.splitlines()
    assert {line.partition("{")[0].partition(" ")[0] for line in lines} == {"#", *asked[:3]}
    assert len([line for line in lines if line.startswith("# TYPE")]) == 3
    assert service.get("/metrics?name[]=no", admin=True).body == b""


# --- a folder in which others write


USERS = """
from aiohttp import web
from prometheus_client import Counter
from .probes import routes

AGENTS = Counter("agents", "By who they say they are, \\udcff.", ["agent"])

@routes.get("/agent")
async def agent(request):
    AGENTS.labels(request.headers["User-Agent"]).inc()
    return web.Response()
"""


def with_metrics(folder: Path, source: str) -> Path:
    """The application under test with this module in it."""
    code = copy_code(folder)
    (code / PACKAGE / "of_the_user.py").write_text(source)
    app = code / PACKAGE / "app.py"
    app.write_text(f"{app.read_text()}\nfrom . import of_the_user\n")
    return code


def test_a_label_may_be_any_bytes(start: Start, tmp_path: Path) -> None:
    service = start(code=with_metrics(tmp_path / "code", USERS), WEB_CONCURRENCY="1")
    for agent in ("\xff\xfe", "\xff\xfd", "é".encode().decode("latin-1")):
        assert service.get("/agent", {"User-Agent": agent}).status == 200
    counts = {its["agent"]: n for name, its, n in service.scrape() if name == "agents_total"}
    assert counts == {"\ufffd\ufffd": 2, "é": 1}
    assert service.total("metrics_degraded") == 0


def damage(service: Service, how: str) -> None:
    """Do to the files of web workers what no one should."""
    mine = next(service.folder().glob("counts_0.keys"))
    other = mine.with_name("counts_999.keys")
    match how:
        case "deleted":
            mine.unlink()
        case "numbers deleted":
            mine.with_suffix(".cells").unlink()
        case "cut":
            os.truncate(mine, 100)
        case "written over":
            mine.write_bytes(b"nonsense\n" * mine.stat().st_size)
        case "nonsense":
            other.write_bytes(b"[" * 100_000 + b"\n\xff\xfe\n{}\n")
        case "no text":
            other.write_text('["counter", "", "x", "x_total", {"a": "\\udcff"}, ""]\n')
        case "a folder":
            other.mkdir()
        case "a pipe":
            other.write_text('["counter", "", "x", "x_total", {}, ""]\n')
            os.mkfifo(other.with_suffix(".cells"))
        case "numbers missing":
            other.write_text('["counter", "", "x", "x_total", {}, ""]\n')
        case "half a summary":
            other.write_text('["summary", "", "http_requests", "http_requests_total", {}, ""]\n')
            other.with_suffix(".cells").write_bytes(b"\0" * 3)


MINE = ("deleted", "numbers deleted", "cut", "written over")
OTHERS = ("nonsense", "no text", "a folder", "a pipe", "numbers missing", "half a summary")


@pytest.mark.parametrize("how", [*MINE, *OTHERS])
def test_a_scrape_shows_the_rest_and_says_that_it_is_not_all(start: Start, how: str) -> None:
    service = start(WEB_CONCURRENCY="1")
    for _ in range(5):
        service.get("/")
    assert service.total("http_requests_total", route="/") == 5
    assert service.total("metrics_degraded") == 0
    damage(service, how)
    service.scrape()
    assert service.total("metrics_degraded") == 1
    assert service.total("http_requests_total", route="/") == 5
    assert service.log.read_text().count("metrics are incomplete") == 1
    assert service.get("/").status == 200


# --- what prometheus_client does in one process only

MORE = """
import multiprocessing, os, subprocess, sys
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info
from prometheus_client import REGISTRY, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from .probes import routes

Info("build", "What runs.").info({"version": "1.2"})
MODE = Enum("mode", "What a worker does.", states=["idle", "busy"])
SIZE = Gauge("pool_size", "Of a pool.", multiprocess_mode="livesum")
SIZE.set_function(lambda: 7)
Gauge("broken", "Never known.", multiprocess_mode="livesum").set_function(lambda: 1 / 0)
ITEMS = Counter("items", "Things.", ["kind"])
LEVEL = Gauge("level", "Levels.", ["kind"], multiprocess_mode="livesum")
SECONDS = Histogram("work_seconds", "Time.", ["kind"])
CHILDREN = Counter("children", "Of workers.")

class Pool:
    def collect(self):
        yield GaugeMetricFamily("connections_idle", "Idle ones, \\udcff.", value=3)
        taken = CounterMetricFamily("connections_taken", "Taken ones.", labels=["by"])
        taken.add_metric(["a\\udcff"], os.getpid())
        yield taken

class Failing:
    def describe(self):
        return []

    def collect(self):
        raise LookupError("a collector that fails")

REGISTRY.register(Pool())
REGISTRY.register(Failing())

@routes.get("/count/{kind}")
async def count(request):
    kind = request.match_info["kind"]
    note = {"trace_id": f"trace-{kind}"}
    ITEMS.labels(kind).inc(1, note)
    SECONDS.labels(kind).observe(0.3, note)
    LEVEL.labels(kind).inc()
    return web.json_response({"worker": os.getpid()})

@routes.get("/busy")
async def busy(request):
    MODE.state("busy")
    return web.json_response({"worker": os.getpid()})

@routes.get("/remove/{kind}")
async def remove(request):
    ITEMS.remove(request.match_info["kind"])
    SECONDS.remove_by_labels({"kind": request.match_info["kind"]})
    return web.Response()

@routes.get("/clear")
async def clear(request):
    for metric in (ITEMS, LEVEL, SECONDS):
        metric.clear()
    return web.Response()

@routes.get("/mine")
async def mine(request):
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return web.Response(body=generate_latest(registry))

@routes.get("/child/{how}")
async def child(request):
    how = request.match_info["how"]
    if how == "other":
        code = "import prometheus_client as p; p.Counter('others', 'Unseen.').inc()"
        subprocess.run([sys.executable, "-c", code], check=True)
    else:
        process = multiprocessing.get_context(how).Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0, process.exitcode
    return web.Response()

def work():
    CHILDREN.inc()
"""


@pytest.fixture
def more(start: Start, tmp_path: Path) -> Service:
    """Two workers with metrics of all kinds."""
    return start(code=with_metrics(tmp_path / "code", MORE))


def each_worker(service: Service, path: str) -> int:
    """Ask until each of two workers has answered; how often that was."""
    seen: list[int] = []

    def asked() -> bool:
        seen.append(service.get(path).json()["worker"])
        return len(set(seen)) == 2

    wait_for(asked, 60)
    return len(seen)


def shown(service: Service, name: str) -> list[tuple[dict[str, str], float]]:
    found = [(its, value) for one, its, value in service.scrape() if one == name]
    return sorted(found, key=lambda one: sorted(one[0].items()))


def test_info_enum_functions_and_collectors(more: Service) -> None:
    wait_for(lambda: len(shown(more, "connections_idle")) == 2, 60)
    workers = [its["worker"] for its, _ in shown(more, "connections_idle")]
    assert shown(more, "build_info") == [({"version": "1.2"}, 1)]
    assert wait_for(lambda: shown(more, "pool_size") == [({}, 14)], 60)
    assert shown(more, "connections_idle") == [({"worker": w}, 3) for w in workers]
    taken = shown(more, "connections_taken_total")
    assert [its for its, _ in taken] == [{"by": "a\ufffd", "worker": w} for w in workers]
    assert sorted(n for _, n in taken) == sorted(more.workers())
    assert {n for _, n in shown(more, "mode")} == {0, 1}
    each_worker(more, "/busy")
    states = [
        ({"mode": state, "worker": w}, float(state == "busy"))
        for state in ("busy", "idle")
        for w in workers
    ]
    assert shown(more, "mode") == states
    assert shown(more, "broken") == []
    wait_for(lambda: more.says("a collector that fails") and more.says("division by zero"), 60)
    told = more.log.read_text()
    assert told.count("LookupError: a collector that fails") == 2  # once in each worker
    assert more.total("metrics_degraded") == 0
    # the dead are not asked
    gone = more.workers()[0]
    os.kill(gone, signal.SIGKILL)
    wait_for(lambda: len({n for _, n in shown(more, "connections_taken_total")} - {gone}) == 2, 60)
    assert [its["worker"] for its, _ in shown(more, "connections_idle")] == workers


def test_exemplars_are_shown_where_they_can_be(more: Service) -> None:
    more.get("/count/a")
    accept = {"Accept": PROMETHEUS_2}

    def exemplars() -> dict[str, Any]:
        text = more.get("/metrics", accept, admin=True).body.decode()
        samples = [s for family in open_metrics(text) for s in family.samples if s.exemplar]
        return {s.name: (s.exemplar.labels, s.exemplar.value) for s in samples if s.exemplar}

    traced = {"trace_id": "trace-a"}
    wait_for(
        lambda: exemplars() == {"items_total": (traced, 1), "work_seconds_bucket": (traced, 0.3)},
        60,
    )
    assert b"trace-a" not in more.get("/metrics", admin=True).body


def test_remove_and_clear_reach_every_process(more: Service) -> None:
    each_worker(more, "/count/a")
    each_worker(more, "/count/b")
    assert len(shown(more, "items_total")) == 2
    more.get("/remove/a")
    assert [its["kind"] for its, _ in shown(more, "items_total")] == ["b"]
    assert [its["kind"] for its, _ in shown(more, "work_seconds_count")] == ["b"]
    assert len(shown(more, "level")) == 2
    again = each_worker(more, "/count/a")
    counted, buckets = shown(more, "items_total"), shown(more, "work_seconds_count")
    assert counted[0][1] == buckets[0][1] == again
    more.get("/clear")
    for name in ("items_total", "work_seconds_count", "work_seconds_bucket", "level"):
        assert shown(more, name) == []
    more.get("/count/a")
    assert shown(more, "items_total") == shown(more, "level") == [({"kind": "a"}, 1)]
    assert shown(more, "work_seconds_count") == [({"kind": "a"}, 1)]


def test_an_endpoint_of_ones_own_shows_all_processes(more: Service) -> None:
    each_worker(more, "/count/a")
    families = text_string_to_metric_families(more.get("/mine").body.decode())
    totals = [s.value for f in families for s in f.samples if s.name == "items_total"]
    assert totals == [more.total("items_total")]


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_children_count(more: Service, how: str) -> None:
    for _ in range(3):
        assert more.get(f"/child/{how}", timeout=100).status == 200
    assert more.total("children_total") == 3
    assert more.total("metrics_degraded") == 0
    assert not list(more.folder().glob("*.db"))


def test_children_that_count_elsewhere_are_told(more: Service) -> None:
    more.get("/child/other", timeout=100)
    more.scrape()
    assert more.total("metrics_degraded") == 1
    assert more.says("a child process counts in")
    assert not list(more.folder().glob("*.db"))


REFUSED = {
    "Counter('http_requests', 'Mine.')": "has the name of one of the runtime's, ",
    "Gauge('http_requests_total', 'Mine.', ['a'], registry=None)": "catalogue.py:",
    "Gauge('metrics_degraded', 'Mine.')": "give it another name",
    "Gauge('x', 'Mine.', ['worker'])": "the label worker is added",
    "Gauge('x', 'Mine.', ['worker'], multiprocess_mode='liveall')": "give livesum",
    "Enum('x', 'Mine.', ['worker'], states=['a'])": "the label worker is added",
    "c.remove('GET', '/', '200')": "is the runtime's",
    "c.clear()": "is the runtime's",
}
EARLIER = f"""
import os, sys, json
from pathlib import Path
folder, env = sys.argv[1:]
if env:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
c = Counter("early", "In a library.", ["l"], registry=CollectorRegistry())
c.labels("a").inc(2)
h = Histogram("early_h", "h"); h.observe(1)
s = Summary("early_s", "s"); s.observe(3)
g = Gauge("early_g", "g", multiprocess_mode="livesum"); g.set(4)
Info("early_i", "i").info({{"a": "b"}})
e = Enum("early_e", "e", states=["on", "off"])
f = Gauge("early_f", "f", multiprocess_mode="livesum"); f.set_function(lambda: 9)
import {PACKAGE}.runtime as runtime
from {PACKAGE}.runtime.metrics import asked, exposition, values
values.install(Path(folder))
c.labels("a").inc(); h.observe(2); s.observe(4); g.inc(); e.state("off"); asked.ask()
from {PACKAGE}.runtime.metrics.catalogue import REQUESTS as c
refused = []
for code in json.load(sys.stdin):
    try:
        eval(code)
    except ValueError as error:
        refused.append(str(error))
text = exposition.Exposition().scrape()[0].decode()
print(json.dumps([text.splitlines(), refused, [p.name for p in Path(folder).glob("*.db")]]))
"""


@pytest.mark.parametrize("env", ["", "set"])
def test_earlier_metrics_count_and_wrong_ones_are_refused(tmp_path: Path, env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLIER, str(tmp_path), env],
        input=json.dumps(list(REFUSED)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines, refused, stock = json.loads(done.stdout)
    assert sorted(x for x in lines if x.startswith("early") and "_bucket" not in x) == [
        'early_e{early_e="off",worker="0"} 1.0',
        'early_e{early_e="on",worker="0"} 0.0',
        "early_f 9.0",
        "early_g 5.0",
        "early_h_count 2.0",
        "early_h_sum 3.0",
        'early_i_info{a="b"} 1.0',
        "early_s_count 2.0",
        "early_s_sum 7.0",
        'early_total{l="a"} 3.0',
    ]
    assert len(refused) == len(REFUSED), refused
    for told, expected in zip(refused, REFUSED.values(), strict=True):
        assert expected in told
    assert "<string>:1" in refused[0]
    assert "catalogue.py:" in refused[0]
    assert stock == []
