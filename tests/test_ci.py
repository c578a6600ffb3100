"""The CI files, here and generated: valid as their vendors say, and every line of them runs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from conftest import Answers, require, run, wait_for

Bake = Callable[..., Path]

BIN = Path(sys.executable).parent
GITHUB = Path(".github/workflows/ci.yml")
GITLAB = Path(".gitlab-ci.yml")
SCHEMAS = {
    GITHUB: ["vendor.github-workflows"],
    Path(".github/dependabot.yml"): ["vendor.dependabot"],
    GITLAB: ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
    Path("renovate.json"): ["vendor.renovate"],
}
PROJECTS: list[Answers] = [
    {"ci": ci, "job_queue": queue} for ci in ("github", "gitlab") for queue in ("none", "redis")
]
# image: the registry that one logs in to, and what is pushed there
IMAGES = {
    ("github", "my-service"): ("ghcr.io", "ghcr.io/some/one"),
    ("github", "ghcr.io/team/service"): ("ghcr.io", "ghcr.io/team/service"),
    ("github", "team/service"): ("docker.io", "team/service"),
    ("github", "registry.example.com:5000/a/b"): (
        "registry.example.com:5000",
        "registry.example.com:5000/a/b",
    ),
    ("gitlab", "my-service"): ("registry.gitlab.com", "registry.gitlab.com/some/one"),
    ("gitlab", "team/service"): ("docker.io", "team/service"),
}
PRE_COMMIT = "pre-commit==4.7.0"  # in an environment of its own, as users have it


def check_jsonschema(file: Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", *SCHEMAS[file], file],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def zizmor(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BIN / "zizmor", "--offline", "--quiet", "--no-config", "--strict-collection", ".github"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def jobs_of(project: Path) -> dict[str, Any]:
    if (project / GITHUB).exists():
        jobs: dict[str, Any] = yaml.safe_load((project / GITHUB).read_text())["jobs"]
        return jobs
    return {
        name: job
        for name, job in yaml.safe_load((project / GITLAB).read_text()).items()
        if "script" in job
    }


def lines_of(job: Any) -> list[str]:
    """What a job runs, in order, each line as a shell gets it."""
    return job.get("script") or [step["run"] for step in job["steps"] if "run" in step]


@pytest.fixture(params=PROJECTS, ids=lambda answers: "-".join(answers.values()))
def project(request: pytest.FixtureRequest, bake: Bake) -> Path:
    return bake(**request.param)


# --- what tools say


def test_is_valid(project: Path) -> None:
    files = [file for file in SCHEMAS if (project / file).exists()]
    assert len(files) == 2
    for file in files:
        checked = check_jsonschema(file, project)
        assert checked.returncode == 0, checked.stdout


def test_a_job_may_not_be_called_like_a_keyword(bake: Bake, tmp_path: Path) -> None:
    valid = (bake(ci="gitlab", job_queue="none") / GITLAB).read_text()
    (tmp_path / GITLAB).write_text(valid.replace("\ncontainer:\n", "\nimage:\n"))
    assert "$.image" in check_jsonschema(GITLAB, tmp_path).stdout


@pytest.mark.parametrize("image", [image for ci, image in IMAGES if ci == "github"])
def test_zizmor_has_nothing_to_say(image: str, bake: Bake, tmp_path: Path) -> None:
    project = bake(ci="github", image=image)
    checked = zizmor(project)
    assert checked.returncode == 0, checked.stdout
    shutil.copytree(project / ".github", tmp_path / ".github")
    text = (tmp_path / GITHUB).read_text()
    (tmp_path / GITHUB).write_text(re.sub("@[0-9a-f]{40}", "@v7", text))
    assert zizmor(tmp_path).returncode, "an action that is not pinned is seen"


# --- what may write, and what runs before it


def test_only_the_job_that_pushes_may_write(bake: Bake) -> None:
    workflow = yaml.safe_load((bake(ci="github", job_queue="none") / GITHUB).read_text())
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"contents": "read", "packages": "write"}
    assert jobs["publish"]["if"] == "github.event_name == 'push'"
    assert workflow[True]["push"] == {"branches": ["main"]}  # `on` is a boolean to YAML 1.1
    for job in jobs.values():
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_an_image_is_pushed_only_from_main_and_after_the_checks(project: Path) -> None:
    jobs = jobs_of(project)
    assert list(jobs) == ["test", "audit", "container", "publish"]
    assert jobs["publish"]["needs"] == ["test", "container"]
    if "rules" in jobs["publish"]:
        (rule,) = jobs["publish"]["rules"]
        assert rule["if"] == (
            '$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH && $CI_PIPELINE_SOURCE == "push"'
        )


def test_what_is_known_today_is_asked_again_next_week(project: Path) -> None:
    if (project / GITHUB).exists():
        workflow = yaml.safe_load((project / GITHUB).read_text())
        assert workflow[True]["schedule"]
    assert "once a week" in (project / "SECURITY.md").read_text()
    assert lines_of(jobs_of(project)["audit"]) == ["make audit"]


def test_dependabot_knows_everything_that_is_pinned(bake: Bake) -> None:
    project = bake(ci="github", job_queue="none")
    config = yaml.safe_load((project / ".github" / "dependabot.yml").read_text())
    where = {
        "pip": "requirements.txt",
        "docker": "Dockerfile",
        "docker-compose": "compose.yaml",
        "github-actions": str(GITHUB),
    }
    assert [update["package-ecosystem"] for update in config["updates"]] == list(where)
    assert all((project / file).exists() for file in where.values())


# --- every line runs


class Advisories(BaseHTTPRequestHandler):
    """Knows of one vulnerability, where asked to."""

    vulnerable = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
        found: dict[str, Any] = {}
        if asked["name"] == self.vulnerable:
            package = {"name": asked["name"], "ecosystem": "PyPI"}
            found = {"vulns": [{"id": "PYSEC-0000-1", "affected": [{"package": package}]}]}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def advisories() -> Iterator[Callable[[str], str]]:
    """Starts a stand-in for OSV, which cannot be asked for what it does not know."""
    servers = []

    def start(vulnerable: str = "") -> str:
        handler = type("Handler", (Advisories,), {"vulnerable": vulnerable})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1/query"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def runner(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which docker is the engine of this machine, and root needs no sudo."""
    commands = tmp_path_factory.mktemp("runner")
    stand_in(commands / "docker", f'exec {engine} "$@"')
    if not os.geteuid():
        stand_in(commands / "sudo", 'exec "$@"')
    return f"{commands}:{os.environ['PATH']}"


def stand_in(command: Path, script: str) -> None:
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("queue", ["none", "redis"])
def test_every_line_runs(
    queue: str, bake: Bake, runner: str, advisories: Callable[..., str]
) -> None:
    """In the order of the jobs; a line that both vendors' files have runs once."""
    projects = [bake(**answers) for answers in PROJECTS if answers["job_queue"] == queue]
    lines = {
        line: None
        for project in projects
        for name, job in jobs_of(project).items()
        if name != "publish"
        for line in lines_of(job)
    }
    for line in lines:
        if line.startswith("apt-get") and os.geteuid():
            line = line.replace("apt-get", "sudo apt-get")  # GitLab's containers run as root
        run(
            *("bash", "-euo", "pipefail", "-c", line),
            cwd=projects[0],
            PATH=runner,
            PIP_AUDIT_OSV_URL=advisories(),
        )


@pytest.mark.parametrize(("ci", "image"), IMAGES)
def test_publishes_the_image(ci: str, image: str, bake: Bake, tmp_path: Path) -> None:
    """What docker is told: no registry is pushed to here, and podman has no buildx."""
    commands, said, entered = (tmp_path / name for name in ("bin", "said", "entered"))
    commands.mkdir()
    stand_in(
        commands / "docker",
        f"""printf '%s\\n' "$*" >>{said}; [ "$1" != login ] || cat >{entered}""",
    )
    job = jobs_of(bake(ci=ci, image=image))["publish"]
    environment = {
        "GITHUB_SHA": "0123abc",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "Some/One",
        "CI_COMMIT_SHA": "0123abc",
        "CI_PROJECT_URL": "https://gitlab.com/some/one",
        "CI_REGISTRY": "registry.gitlab.com",
        "CI_REGISTRY_IMAGE": "registry.gitlab.com/some/one",
        "CI_REGISTRY_USER": "somebody",
        "CI_REGISTRY_PASSWORD": "s3cret $HOME",
        "REGISTRY_USERNAME": "somebody",
        "REGISTRY_PASSWORD": "s3cret $HOME",
    }
    known = {
        "github.repository": "Some/One",
        "github.actor": "somebody",
        "secrets.GITHUB_TOKEN": "s3cret $HOME",
        "secrets.REGISTRY_USERNAME": "somebody",
        "secrets.REGISTRY_PASSWORD": "s3cret $HOME",
    }

    def given(values: dict[str, str]) -> dict[str, str]:
        """Variables as the runner passes them on."""
        if ci == "gitlab":
            return {name: environment.get(text[1:], text) for name, text in values.items()}
        return {
            name: re.sub(r"\$\{\{ (.*?) \}\}", lambda found: known[found[1]], text)
            for name, text in values.items()
        }

    job_given = given(job.get("env") or job.get("variables"))
    if ci == "github":
        steps = [
            (step["run"], given(step.get("env", {}))) for step in job["steps"] if "run" in step
        ]
    else:
        steps = [(line, {}) for line in job["script"]]
    path = f"{commands}:{os.environ['PATH']}"
    for line, step_given in steps:
        shell = ("bash", "-e") if ci == "github" else ("sh", "-e")
        variables = environment | job_given | step_given | {"PATH": path}
        run(*shell, "-c", line, cwd=tmp_path, **variables)

    registry, pushed = IMAGES[ci, image]
    login, *_, build = said.read_text().splitlines()
    assert login == f"login --username somebody --password-stdin {registry}"
    assert entered.read_text() == "s3cret $HOME\n"
    assert build.startswith("buildx build --push --sbom=true --provenance=mode=max ")
    assert build.endswith(f" --tag {pushed}:0123abc --tag {pushed}:latest .")
    source = "https://gitlab.com/some/one" if ci == "gitlab" else "https://github.com/Some/One"
    for name, value in {"version": "0123abc", "revision": "0123abc", "source": source}.items():
        assert f" --label org.opencontainers.image.{name}={value} " in build


# --- what is said to people


@pytest.mark.parametrize(
    ("ci", "where"),
    [
        ("github", "**Report a vulnerability** under the repository's Security tab"),
        ("gitlab", "mark it confidential"),
        ("none", "Write to Your Name"),
    ],
)
def test_says_where_a_vulnerability_is_reported(ci: str, where: str, bake: Bake) -> None:
    project = bake(ci=ci)
    security, readme = ((project / name).read_text() for name in ("SECURITY.md", "README.md"))
    assert where in security
    assert "[SECURITY.md](SECURITY.md)" in readme
    targets = re.findall(r"`make ([a-z-]+)`", security)
    assert targets
    run("make", "--dry-run", *targets, cwd=project)


def test_the_licence_of_a_project_is_for_its_owner_to_choose(bake: Bake) -> None:
    project = bake(ci="github")
    assert not list(project.glob("LICEN*"))
    assert "There is no licence yet" in (project / "README.md").read_text()


# --- the template's own


def test_the_templates_own_is_valid(template: Path) -> None:
    for file in (GITHUB, Path(".github/dependabot.yml")):
        checked = check_jsonschema(file, template)
        assert checked.returncode == 0, checked.stdout
    checked = zizmor(template)
    assert checked.returncode == 0, checked.stdout


def test_every_action_is_pinned_once(template: Path, bake: Bake) -> None:
    pins: dict[str, set[str]] = {}
    for folder in (template, bake(ci="github", job_queue="none")):
        text = (folder / GITHUB).read_text()
        found = re.findall(r"uses: (\S+)@([0-9a-f]{40} # v[0-9.]+)\n", text)
        assert len(found) == text.count("uses:")
        for action, pin in found:
            pins.setdefault(action, set()).add(pin)
    assert {action: len(each) for action, each in pins.items()} == dict.fromkeys(pins, 1)


def test_runs_on_every_python_that_a_project_may_have(template: Path) -> None:
    tested = jobs_of(template)["test"]["strategy"]["matrix"]["python"]
    packaging = tomllib.loads((template / "pyproject.toml").read_text())["project"]
    assert tested[0] == packaging["requires-python"].removeprefix(">=")
    answers = json.loads((template / "cookiecutter.json").read_text())["python_version"]
    assert set(answers) <= set(tested)


def test_pre_commit_here_runs_what_ci_runs(template: Path) -> None:
    (repository,) = yaml.safe_load((template / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"] for hook in repository["hooks"]}
    in_ci = {line for line in lines_of(jobs_of(template)["test"]) if line.startswith("make")}
    assert hooks == in_ci - {"make install"}


KUBECTL = """
case "$1 $2" in
kustomize*) exec {kubectl} "$@" ;;
"get nodes") echo 127.0.0.1 ;;
"get service") echo {port} ;;
"apply -f") cat >>{applied}; echo --- >>{applied} ;;
esac
"""


@pytest.mark.timeout(1800)
def test_every_line_here_runs(
    template: Path, engine: str, installed: Bake, tmp_path: Path, advisories: Callable[..., str]
) -> None:
    """But the tests, which this is one of. The cluster is one service, as its kubectl says."""
    commands, applied, environment = (tmp_path / name for name in ("bin", "applied", "env"))
    commands.mkdir()
    clone = shutil.copytree(template, tmp_path / "template")
    port, admin = free_port(), free_port()
    kubectl = KUBECTL.format(kubectl=require("kubectl"), port=port, applied=applied)
    for name, script in {"docker": f'exec {engine} "$@"', "kind": "", "kubectl": kubectl}.items():
        stand_in(commands / name, script)
    environment.touch()
    given = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "GITHUB_ENV": str(environment),
        "PIP_AUDIT_OSV_URL": advisories(),
    }
    service = subprocess.Popen(
        [installed() / ".venv" / "bin" / "my-service"],
        env={"PORT": port, "ADMIN_PORT": admin, "WEB_CONCURRENCY": "1", "ACCESS_LOG": "false"},
    )
    try:
        jobs = jobs_of(template).values()
        for line in dict.fromkeys(line for job in jobs for line in lines_of(job)):
            if not line.startswith("make test") and "apt-get" not in line:
                exported = dict(each.split("=", 1) for each in environment.read_text().split())
                run("bash", "-e", "-c", line, cwd=clone, **given | exported)
    finally:
        service.terminate()
        service.wait(60)
        for tag in (1, 2):
            subprocess.run([engine, "rmi", f"my-service:{tag}"], capture_output=True, check=False)
    found = [each for each in yaml.safe_load_all(applied.read_text()) if each]
    pods = [each["spec"]["template"]["spec"] for each in found if each["kind"] == "Deployment"]
    images = [pod["containers"][0]["image"] for pod in pods]
    assert images == ["my-service:1", "my-service:2", "my-service:2"]
    assert [len(pod.get("initContainers") or []) for pod in pods] == [1, 0, 0]


@pytest.mark.parametrize(
    ("command", "code"),
    [("sleep 1", 0), ("exit 7", 7), ("kill -KILL $PID", 1)],
    ids=["answered", "command", "lost"],
)
def test_under_load_counts_what_is_lost(
    command: str, code: int, template: Path, installed: Bake
) -> None:
    port, admin = free_port(), free_port()
    service = subprocess.Popen(
        [installed() / ".venv" / "bin" / "my-service", "web"],
        env={"PORT": port, "ADMIN_PORT": admin, "WEB_CONCURRENCY": "1", "ACCESS_LOG": "false"},
        start_new_session=True,
    )
    try:
        wait_for(lambda: is_ready(admin))
        done = subprocess.run(
            [
                *(sys.executable, template / "scripts/under_load.py", f"http://127.0.0.1:{port}/"),
                *("sh", "-c", command.replace("$PID", f"-{service.pid}")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
        service.wait(60)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("connect: " in done.stdout) == (code == 1)
    if code != 1:
        for kind in ("kept", "new"):
            assert re.search(rf"{kind} connections: \{{200: \d+\}}, 0 failures", done.stdout)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def is_ready(admin: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# --- each check sees what it is for


@pytest.fixture
def mine(installed: Bake, tmp_path: Path) -> Path:
    """A copy of the default project, its .venv included, that a test may spoil."""
    project = tmp_path / "project"
    shutil.copytree(installed(), project, symlinks=True)
    return project


def fails(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode, done.stdout
    return done.stdout


def test_audit_fails_for_a_vulnerability(mine: Path, advisories: Callable[[str], str]) -> None:
    said = fails("make", "audit", cwd=mine, PIP_AUDIT_OSV_URL=advisories("aiohttp"))
    assert re.search(r"aiohttp +\S+ +PYSEC-0000-1", said)


def test_audit_fails_when_nobody_can_be_asked(mine: Path) -> None:
    fails("make", "audit", cwd=mine, PIP_AUDIT_OSV_URL="http://127.0.0.1:1/")


def test_check_lock_sees_pins_that_do_not_fit(mine: Path) -> None:
    run("make", "check-lock", cwd=mine)
    pins = mine / "requirements.txt"
    right = pins.read_text()
    pins.write_text(re.sub(r"(?m)^yarl==.*\n(    --hash.*\n)+", "", right))
    run("touch", mine / ".venv" / "installed", cwd=mine)  # it would not install as it is
    assert "commit them" in fails("make", "check-lock", cwd=mine)
    assert pins.read_text() == right


def test_check_manifests_sees_a_field_that_does_not_exist(mine: Path) -> None:
    run("make", "check-manifests", cwd=mine)
    service = mine / "k8s" / "service.yaml"
    service.write_text(service.read_text().replace("selector:", "selectors:"))
    assert "selectors" in fails("make", "check-manifests", cwd=mine)


def test_pre_commit_runs_what_ci_runs(mine: Path) -> None:
    config = yaml.safe_load((mine / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    hooks = [hook["entry"] for hook in repository["hooks"]]
    in_ci = [line for line in lines_of(jobs_of(mine)["test"]) if line.startswith("make")]
    assert sorted(hooks) == sorted(set(in_ci) - {"make install"})
    pre_commit = (BIN / "uv", "tool", "run", "--quiet", "--from", PRE_COMMIT, "pre-commit")
    run(*pre_commit, "run", "--all-files", cwd=mine)
    run(*pre_commit, "install", cwd=mine)
    assert {"pre-commit", "pre-push"} <= {hook.name for hook in (mine / ".git/hooks").iterdir()}
    (package,) = (mine / "src").iterdir()
    with (package / "views.py").open("a") as views:
        views.write("import os\n")
    said = fails("git", "-c", "user.name=x", "-c", "user.email=x", "commit", "-am", "x", cwd=mine)
    assert re.search(r"make lint\.+Failed", said)
    assert re.search(r"make check-lock\.+.*Skipped", said)
