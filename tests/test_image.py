"""The image, built by a real engine and run as a cluster would run it."""

import asyncio
import http.client
import itertools
import json
import os
import re
import runpy
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Answers, run, wait_for
from test_answers import DEFAULT

# What a pod that is restricted may do.
CONFINED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
NOTHING_WRITABLE = [f"--tmpfs={folder}:ro" for folder in ("/dev/shm", "/tmp", "/var/tmp")]
BUDGET = 5 + 20  # LAME_DUCK and GRACEFUL_TIMEOUT
# No retry, every answer counted.
LOAD = runpy.run_path(str(ROOT / "tests" / "runtime" / "load.py"))["Load"]
REDIS: Answers = {"job_queue": "redis", "project_slug": "my-service-redis"}

Bake = Callable[..., Path]
Start = Callable[..., "Container"]


def call(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def output(*command: str) -> str:
    done = call(*command)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


class Container:
    """A container of the image, its ports published on this machine."""

    names = (f"aiohttp-mp-{os.getpid()}-{number}" for number in itertools.count())

    def __init__(self, engine: str, image: str, *options: str, command: str = "serve") -> None:
        self.engine, self.name = engine, next(self.names)
        ports = ("--publish", "127.0.0.1::8080", "--publish", "127.0.0.1::8081")
        output(engine, "run", "--detach", "--name", self.name, *ports, *options, image, command)

    def port(self, inside: int) -> int:
        found = call(self.engine, "port", self.name, f"{inside}/tcp").stdout.split()
        assert found, f"it ended:\n{self.log()}"
        return int(found[0].rpartition(":")[2])

    def connect(self, inside: int = 8080) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port(inside), timeout=60)

    def get(self, path: str, inside: int = 8080) -> tuple[int, str]:
        connection = self.connect(inside)
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read().decode()

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; nothing as long as nobody answers."""
        try:
            _, text = self.get("/metrics", 8081)
        except (OSError, http.client.HTTPException):
            return 0
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.split("[ {]", line)[0] == name
            and all(f'{label}="{value}"' in line for label, value in labels.items())
        )

    def wait_for_workers(self, number: int) -> None:
        wait_for(lambda: {self.total("workers", state=s) for s in ("live", "wanted")} == {number})

    def ask_slowly(self) -> http.client.HTTPConnection:
        """A request whose handler has begun, and waits for the rest of the body."""
        connection = self.connect()
        connection.putrequest("POST", "/greet")
        connection.putheader("Content-Length", str(len('{"name": "you"}')))
        connection.endheaders(b'{"name": ')
        return connection

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        given = [f"--env={name}={value}" for name, value in env.items()]
        return call(self.engine, "exec", *given, self.name, *command)

    def check(self, **env: str) -> subprocess.CompletedProcess[str]:
        """What the engine runs to see whether it is healthy."""
        (container,) = json.loads(output(self.engine, "container", "inspect", self.name))
        kind, *command = container["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*command, **env)

    def signal(self, name: str = "TERM") -> None:
        output(self.engine, "kill", "--signal", name, self.name)

    def wait(self) -> int:
        return int(output(self.engine, "wait", self.name))

    def remove(self) -> None:
        call(self.engine, "kill", self.name)  # `rm --force` alone would have it drain
        call(self.engine, "rm", "--force", self.name)

    def log(self) -> str:
        done = call(self.engine, "logs", self.name)
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def build(engine: str, bake: Bake) -> Iterator[Callable[[Answers], str]]:
    """The name of the image that `make image` builds of a project."""
    built: dict[Path, str] = {}
    tag = f"test-{os.getpid()}"

    def build(answers: Answers) -> str:
        project = bake(**answers)
        if project not in built:
            run("make", "image", f"TAG={tag}", cwd=project)
            built[project] = f"{answers.get('project_slug', 'my-service')}:{tag}"
        return built[project]

    yield build
    for image in built.values():
        call(engine, "rmi", image)


@pytest.fixture(scope="session")
def image(build: Callable[[Answers], str]) -> str:
    return build(DEFAULT)


@pytest.fixture(scope="session")
def build_bare(engine: str, bake: Bake) -> Iterator[Callable[[Answers], tuple[str, str]]]:
    """The names of an image and its base, from which all bytecode is removed.

    The official base has none, but one that stands in for it may.
    """
    built: dict[Path, str] = {}
    base = f"bare:test-{os.getpid()}"

    def build(name: str, dockerfile: str, context: Path) -> None:
        command = (engine, "build", "--tag", name, "--file", "-", str(context))
        done = call(*command, input=dockerfile, env=os.environ | {"BUILDAH_FORMAT": "docker"})
        assert done.returncode == 0, done.stderr

    def build_bare(answers: Answers) -> tuple[str, str]:
        project = bake(**answers)
        if project not in built:
            dockerfile = (project / "Dockerfile").read_text()
            (official,) = set(re.findall(r"(?m)^FROM (\S+)", dockerfile))
            remove = "find / -xdev -name __pycache__ -prune -exec rm -rf {} +"
            build(base, f"FROM {official}\nRUN {remove}\n", project)
            name = f"bare-{len(built)}:test-{os.getpid()}"
            build(name, dockerfile.replace(f"FROM {official}", f"FROM {base}"), project)
            built[project] = name
        return built[project], base

    yield build_bare
    for image in (*built.values(), base):
        call(engine, "rmi", image)


@pytest.fixture
def start(engine: str, image: str) -> Iterator[Start]:
    started: list[Container] = []

    def start(*options: str, command: str = "serve", of: str = image) -> Container:
        started.append(Container(engine, of, *options, command=command))
        return started[-1]

    yield start
    for container in started:
        container.remove()


def inspect(engine: str, image: str) -> Any:
    return json.loads(output(engine, "image", "inspect", image))[0]


# --- what is in it


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("answers", "most"), [(DEFAULT, 40e6), (REDIS, 60e6)], ids=["default", "redis"]
)
def test_is_small(
    answers: Answers, most: float, engine: str, build_bare: Callable[[Answers], tuple[str, str]]
) -> None:
    image, base = build_bare(answers)
    added = inspect(engine, image)["Size"] - inspect(engine, base)["Size"]
    print(f"{image.partition(':')[0]}: {added / 1e6:.1f} MB")
    assert 0 < added <= most


def test_says_what_it_is(engine: str, image: str, bake: Bake) -> None:
    project = bake(**DEFAULT)
    revision = run("git", "rev-parse", "HEAD", cwd=project).strip()
    again = f"{image}-again"  # all of it out of the engine's cache, but for what it is called
    run("make", "image", f"TAG={again.partition(':')[2]}", cwd=project)
    prefix = "org.opencontainers.image."
    for name in (again, image):
        config = inspect(engine, name)["Config"]
        version = name.partition(":")[2]
        labels = {key: config["Labels"][prefix + key] for key in ("title", "version", "revision")}
        assert labels == {"title": "my-service", "version": version, "revision": revision}
    output(engine, "rmi", again)
    assert prefix + "source" in config["Labels"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["python", "-m", "my_service"]
    assert config["Cmd"] == ["serve"]


def test_holds_nothing_that_only_the_build_needs(engine: str, image: str) -> None:
    within = (engine, "run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c")
    found = output(
        *within,
        "ls -d /build /root/.cache 2>/dev/null; command -v cc gcc make;"
        "find /opt/venv -name pip -o -name flit_core -o -name 'test_*' -path '*my_service*';"
        "echo; du -s /opt/venv",
    )
    listed, size = found.split("\n\n") if "\n\n" in found else ("", found)
    assert not listed
    assert int(size.split()[0]) > 10_000, "du says that there is a venv"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("answers", "command"), [(DEFAULT, "serve"), (REDIS, "jobs")])
def test_compiles_nothing_as_long_as_it_runs(
    answers: Answers,
    command: str,
    build_bare: Callable[[Answers], tuple[str, str]],
    start: Start,
) -> None:
    image, _ = build_bare(answers)

    def compiled(*options: str) -> list[str]:
        verbose = ("--env", "PYTHONVERBOSE=1", "--env", "LAME_DUCK=0")
        container = start(*CONFINED, "--cpus", "1", *verbose, *options, command=command, of=image)
        checked = wait_for(lambda: (done := container.check()).returncode == 0 and done)
        if command == "serve":
            assert container.get("/primes/1000")[0] == 200
        container.signal()
        assert container.wait() == 0
        return re.findall(r"(?m)# code object from (\S+\.py)$", checked.stderr + container.log())

    assert not compiled()
    assert compiled("--env", "PYTHONPYCACHEPREFIX=/elsewhere"), "this would be seen"


# --- how it runs


@pytest.mark.timeout(600)
def test_serves_and_counts_and_leaves_nobody_waiting(start: Start) -> None:
    container = start(*CONFINED, "--cpus", "1.5", "--memory", "512m", "--user", "10001")
    container.wait_for_workers(2)
    assert container.run("readlink", "/proc/1/exe").stdout.startswith("/usr")
    served = asyncio.run(send(container, until=20_000))
    assert not served.failures
    assert len(served.workers) == 2
    assert served.answers.keys() == {200}
    counted = container.total("http_requests_total", route="/", status="200")
    assert counted == served.answers[200]
    assert json.loads(container.get("/primes/1000000")[1])["count"] == 78498

    slow = [container.ask_slowly() for _ in range(8)]
    with ThreadPoolExecutor() as threads:
        computing = [threads.submit(container.get, "/primes/9999999") for _ in range(8)]
        time.sleep(0.1)
        began = time.monotonic()
        container.signal()
        during = asyncio.run(send(container, seconds=3))
        assert not during.failures, "still accepting, for LAME_DUCK"
        assert container.get("/readyz", 8081)[0] == 503
        assert {json.loads(each.result()[1])["count"] for each in computing} == {664579}
    time.sleep(5)
    for connection in slow:
        connection.send(b'"you"}')
        assert json.loads(connection.getresponse().read()) == {"greeting": "Hello, you!"}
    assert container.wait() == 0
    assert time.monotonic() - began < BUDGET
    assert '"level": "error"' not in container.log()


async def send(container: Container, until: float = float("inf"), seconds: float = 300) -> Any:
    """Requests on eight connections that are kept open."""
    load = LOAD(container.port(8080))
    load.start(8)
    limit = time.monotonic() + seconds
    while sum(load.result.answers.values()) < until and time.monotonic() < limit:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return await load.stop()


@pytest.mark.parametrize(
    ("given", "workers", "why"),
    [
        (("--cpus", "1.5", "--memory", "512m"), 2, "the CPU quota is 1.5"),
        (("--cpus", "0.5"), 1, "the CPU quota is 0.5"),
        (("--cpus", "2", "--memory", "160m"), 1, "80% of the memory limit of 160 MiB"),
    ],
)
def test_counts_its_workers_by_what_it_is_given(
    given: tuple[str, ...], workers: int, why: str, engine: str, image: str, start: Start
) -> None:
    said = output(engine, "run", "--rm", *given, image, "check", "--json")
    found = json.loads(said)
    assert found["web_workers"] == workers
    assert why in found["web_workers_reason"]
    start(*given).wait_for_workers(workers)


def test_follows_the_cpu_it_is_given(engine: str, start: Start) -> None:
    container = start(*CONFINED, "--cpus", "1.5")
    container.wait_for_workers(2)
    for cpus, workers in (("0.5", 1), ("1.5", 2)):
        output(engine, "update", "--cpus", cpus, container.name)
        container.wait_for_workers(workers)
    assert container.total("worker_exits_total", reason="scaled_down") == 1
    assert container.total("worker_exits_total") == 1


def test_runs_as_anybody(start: Start) -> None:
    container = start(*CONFINED, "--user", "54321:0", "--cpus", "1")
    container.wait_for_workers(1)
    assert container.run("id", "-u").stdout.strip() == "54321"


def test_is_healthy_while_it_serves(start: Start) -> None:
    container = start(*CONFINED, "--cpus", "1")
    container.wait_for_workers(1)
    done = container.check()
    assert done.returncode == 0, done.stderr
    assert container.check(ADMIN_PORT="1").returncode


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (NOTHING_WRITABLE, "mount a tmpfs or an emptyDir for it, or on /tmp"),
        (
            ["--env", "PROMETHEUS_MULTIPROC_DIR=/nowhere/metrics"],
            "PROMETHEUS_MULTIPROC_DIR='/nowhere/metrics': / cannot be written; mount a tmpfs",
        ),
    ],
    ids=["memory", "metrics"],
)
def test_says_what_it_cannot_write(options: list[str], says: str, engine: str, image: str) -> None:
    done = call(engine, "run", "--rm", *CONFINED, *options, image, timeout=30)
    assert done.returncode
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def memory(engine: str) -> Iterator[str]:
    """A volume in memory, like an emptyDir that every user may write to."""
    volume = f"aiohttp-mp-{os.getpid()}"
    options = ("--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=mode=1777")
    output(engine, "volume", "create", *options, volume)
    yield volume
    call(engine, "volume", "rm", volume)


@pytest.mark.timeout(600)
def test_both_containers_of_the_pod(memory: str, bake: Bake, start: Start) -> None:
    """As the Deployment has them: their resources, settings and paths."""
    manifest = yaml.safe_load((bake(**DEFAULT) / "k8s" / "deployment.yaml").read_text())
    pod = manifest["spec"]["template"]["spec"]
    (sidecar,), (main,) = pod["initContainers"], pod["containers"]

    def start_one(container: Any) -> Container:
        limits = container["resources"]["limits"]
        env = [f"--env={e['name']}={e['value']}" for e in container["env"] if "value" in e]
        return start(
            *(*CONFINED, "--cpus", limits["cpu"], "--memory", limits["memory"][:-1].lower()),
            *(*env, "--volume", f"{memory}:{container['volumeMounts'][0]['mountPath']}"),
            command=container["args"][0],
        )

    compute = start_one(sidecar)
    wait_for(lambda: compute.run(*sidecar["startupProbe"]["exec"]["command"]).returncode == 0)
    web = start_one(main)
    web.wait_for_workers(2)
    for kind in ("startup", "readiness", "liveness"):
        assert web.get(main[f"{kind}Probe"]["httpGet"]["path"], 8081)[0] == 200
    assert json.loads(web.get("/primes/1000000")[1])["count"] == 78498
    assert web.total("compute_tasks_total", task="primes", outcome="ok") == 1
    assert web.total("compute_workers", state="live") == 2

    slow = web.ask_slowly()
    time.sleep(0.5)
    web.signal()
    time.sleep(1)
    assert json.loads(web.get("/primes/1000000")[1])["count"] == 78498
    slow.send(b'"you"}')
    assert slow.getresponse().status == 200
    assert web.wait() == 0
    began = time.monotonic()
    compute.signal()
    assert compute.wait() == 0
    assert time.monotonic() - began < pod["terminationGracePeriodSeconds"] - BUDGET


@pytest.mark.timeout(600)
def test_compute_in_a_pod_of_its_own(engine: str, bake: Bake, start: Start) -> None:
    """As k8s/compute/ has it, with its address in place of the Service's."""
    folder = bake(**DEFAULT) / "k8s" / "compute"
    manifest = yaml.safe_load((folder / "deployment.yaml").read_text())
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    compute = start(
        *(*CONFINED, "--cpus", limits["cpu"], "--memory", limits["memory"][:-1].lower()),
        *(f"--tmpfs={mount['mountPath']}:mode=1777" for mount in container["volumeMounts"]),
        *(f"--env={e['name']}={e['value']}" for e in container["env"] if "value" in e),
        command=container["args"][0],
    )
    wait_for(lambda: compute.total("compute_workers", state="live") == 2)
    for kind in ("startup", "readiness", "liveness"):
        assert compute.get(container[f"{kind}Probe"]["httpGet"]["path"], 8081)[0] == 200
    (url,) = re.findall(r"value: \"(http://.*)\"", (folder / "Kustomization").read_text())
    (found,) = json.loads(output(engine, "container", "inspect", compute.name))
    (network,) = found["NetworkSettings"]["Networks"].values()
    host = url.removeprefix("http://")
    web = start(
        *(*CONFINED, "--cpus", "1", "--add-host", f"{host}:{network['IPAddress']}"),
        *("--env", f"COMPUTE_URL={url}:8080"),
        command="web",
    )
    web.wait_for_workers(1)
    assert json.loads(web.get("/primes/1000000")[1])["count"] == 78498
    assert compute.total("compute_tasks_total", task="primes", outcome="ok") == 1

    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        computing = threads.submit(web.get, "/primes/9999999")
        compute.signal()
        assert json.loads(computing.result()[1])["count"] == 664579
    assert compute.wait() == 0
    assert time.monotonic() - began < pod["terminationGracePeriodSeconds"]
    assert web.get("/primes/1000")[0] == 503, "nobody there; all else is well"
    assert web.get("/")[0] == 200
