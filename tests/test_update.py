"""The years after: generating again, over what there is, and updates of the template by cruft."""

import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, Answers, Cookiecutter, run
from test_answers import AWKWARD, files

BIN = Path(sys.executable).parent
ME = {f"GIT_{who}_{what}": "me@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
COMBINATIONS: dict[str, Answers] = {
    f"{queue}-{ci}": {"job_queue": queue, "ci": ci}
    for queue in ("none", "redis")
    for ci in ("github", "gitlab", "none")
}
COMBINATIONS |= {name: AWKWARD[name] for name in ("quotes", "unicode", "markup and shell")}

Bake = Callable[..., Path]


class History:
    """The template as a repository that goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources = folder / "{{cookiecutter.project_slug}}"
        run("git", "init", "--quiet", cwd=folder)
        self.commit()

    def commit(self) -> str:
        commit(self.folder)
        return run("git", "rev-parse", "HEAD", cwd=self.folder).strip()

    def change(self, path: str, old: str, new: str) -> None:
        (file,) = self.sources.glob(path)
        change(file, old, new)


def commit(repository: Path) -> None:
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", "x", cwd=repository, **ME)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file} has no {old!r}"
    file.write_text(text.replace(old, new, 1))


def changed(project: Path) -> set[str]:
    """What differs from the last commit, and what git does not know."""
    run("git", "add", "--all", cwd=project)
    return set(run("git", "diff", "--cached", "--name-only", cwd=project).splitlines())


@pytest.fixture
def history(template: Path, tmp_path: Path) -> History:
    folder = tmp_path / "template"
    run("cp", "-r", template, folder, cwd=tmp_path)
    return History(folder)


@pytest.fixture
def cruft(tmp_path: Path) -> Callable[..., str]:
    home = tmp_path / "home"
    home.mkdir()

    def cruft(*arguments: str | Path, cwd: Path) -> str:
        return run(BIN / "cruft", *arguments, cwd=cwd, HOME=str(home), PWD=str(cwd), **ME)

    return cruft


def generate(cookiecutter: Cookiecutter, history: History, tmp_path: Path, **answers: str) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    done = cookiecutter(out, answers, source=str(history.folder))
    assert done.returncode == 0, done.stdout
    (project,) = out.iterdir()
    return project


@pytest.mark.parametrize("name", COMBINATIONS)
def test_cruft_creates_checks_and_updates(
    name: str, cruft: Callable[..., str], history: History, bake: Bake, tmp_path: Path
) -> None:
    answers = COMBINATIONS[name]
    out = tmp_path / "out"
    context = json.dumps(answers)
    cruft("create", "-y", "--output-dir", out, "--extra-context", context, history.folder, cwd=ROOT)
    (project,) = out.iterdir()
    assert {*files(project)} - {project / ".cruft.json"} == {
        project / file.relative_to(bake(**answers)) for file in files(bake(**answers))
    }
    # The first commit has .cruft.json as well.
    assert not run("git", "status", "--porcelain", cwd=project)
    cruft("check", cwd=project)
    assert "already up to date" in cruft("update", "-y", cwd=project)

    history.change("src/*/runtime/README.md", "# The runtime", "# The newer runtime")
    new = history.commit()
    with pytest.raises(AssertionError, match="out of date"):
        cruft("check", cwd=project)
    said = cruft("update", "-y", cwd=project)
    assert "is ready" not in said
    (readme,) = project.glob("src/*/runtime/README.md")
    assert readme.read_text().startswith("# The newer runtime\n")
    assert changed(project) == {".cruft.json", str(readme.relative_to(project))}
    assert json.loads((project / ".cruft.json").read_text())["commit"] == new
    cruft("check", cwd=project)


def test_cookiecutter_remembers_what_cruft_would(
    cruft: Callable[..., str], cookiecutter: Cookiecutter, history: History, tmp_path: Path
) -> None:
    mine = generate(cookiecutter, history, tmp_path) / ".cruft.json"
    cruft("create", "-y", history.folder, cwd=tmp_path)
    assert mine.read_text() == (tmp_path / "my-service" / ".cruft.json").read_text()
    version = json.loads(mine.read_text())["context"]["cookiecutter"]["_version"]
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_a_password_in_the_url_is_not_remembered(
    cookiecutter: Cookiecutter, history: History, tmp_path: Path
) -> None:
    secret = "https://me:secret@git.example.com/template.git"
    config = tmp_path / "gitconfig"
    config.write_text(f'[url "{history.folder}"]\n\tinsteadOf = {secret}\n')
    done = cookiecutter(tmp_path, source=secret, GIT_CONFIG_GLOBAL=str(config))
    assert done.returncode == 0, done.stdout
    remembered = (tmp_path / "my-service" / ".cruft.json").read_text()
    assert json.loads(remembered)["template"] == "https://git.example.com/template.git"
    assert "secret" not in remembered


def test_a_template_with_changes_of_nobody_is_not_remembered(
    cookiecutter: Cookiecutter, history: History, tmp_path: Path
) -> None:
    history.change("README.md", "## Run it", "## Run it!")
    assert not (generate(cookiecutter, history, tmp_path) / ".cruft.json").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("queue", ["none", "redis"])
def test_an_update_keeps_both_sides(
    queue: str, cookiecutter: Cookiecutter, history: History, tmp_path: Path
) -> None:
    """Twice: the second starts from files of which the project's repository has only a mixture."""
    project = generate(cookiecutter, history, tmp_path, job_queue=queue)
    (package,) = (project / "src").iterdir()
    run("make", "install", cwd=project)
    run(".venv/bin/uv", "add", "--frozen", "packaging >=20", cwd=project)
    run("make", "lock", cwd=project)
    pins = (project / "requirements.txt").read_text()
    assert "\npackaging==" in pins
    # One line between their lines and ours: a patch does not apply, a merge does.
    change(package / "views.py", "\nfrom aiohttp", "\nfrom base64 import b64encode\nfrom aiohttp")
    change(project / "README.md", "## Run it\n", "## Run it\n\nOurs is better.\n")
    change(project / "k8s" / "configmap.yaml", "\ndata:\n", '\ndata:\n  OURS: "1"\n')
    for round_ in ("one", "two"):
        commit(project)
        # As a fresh clone: without what the last update left in it.
        run("git", "gc", "--quiet", "--prune=now", cwd=project)
        history.change("src/*/views.py", '"""', f'"""{round_}: ')
        history.change("src/*/runtime/__init__.py", '"""', f'"""{round_}: ')
        history.change("README.md", "\n## Run it", f"\nTheirs is {round_}.\n\n## Run it")
        history.change("k8s/configmap.yaml", "apiVersion", f"# {round_}\napiVersion")
        history.change("Dockerfile", "FROM", f"# {round_}\nFROM")
        history.change("compose/prometheus.yml", "scrape", f"# {round_}\nscrape")
        history.change(".github/workflows/*", "name: CI", f"name: CI {round_}")
        history.commit()
        said = run("make", "update", cwd=project, **ME)
        assert "Resolved" in said, "the lock follows"

        texts = {file.relative_to(project): file.read_text() for file in files(project)}
        theirs = {str(path) for path, text in texts.items() if round_ in text}
        expected = {
            f"src/{package.name}/views.py",
            f"src/{package.name}/runtime/__init__.py",
            "README.md",
            "k8s/configmap.yaml",
            "Dockerfile",
            "compose/prometheus.yml",
            ".github/workflows/ci.yml",
        }
        assert theirs >= expected
        assert changed(project) == expected | {".cruft.json"}
        assert "Ours is better." in texts[Path("README.md")]
        assert '  OURS: "1"' in texts[Path("k8s/configmap.yaml")]
        assert "import b64encode" in (package / "views.py").read_text()
        assert not [text for text in texts.values() if re.search("^<<<<<<<", text, re.M)]
        assert not list(project.rglob("*.rej"))
        assert (project / "requirements.txt").read_text() == pins


def test_a_conflict_is_named(cookiecutter: Cookiecutter, history: History, tmp_path: Path) -> None:
    project = generate(cookiecutter, history, tmp_path)
    run("make", "install", cwd=project)
    change(project / "README.md", "## Run it", "## Ours")
    commit(project)
    history.change("README.md", "## Run it", "## Theirs")
    history.commit()
    with pytest.raises(AssertionError, match=r"README.md\s+You and the template changed the same"):
        run("make", "update", cwd=project, **ME)
    assert "## Ours" in (project / "README.md").read_text()
    assert "## Theirs" in (project / "README.md").read_text()


def test_another_answer_is_an_update(
    cookiecutter: Cookiecutter, cruft: Callable[..., str], history: History, tmp_path: Path
) -> None:
    project = generate(cookiecutter, history, tmp_path)
    before = {file: file.read_bytes() for file in files(project)}
    for queue in ("redis", "none"):
        answer = json.dumps({"job_queue": queue})
        cruft("update", "-y", "--variables-to-update", answer, cwd=project)
        commit(project)
        assert (project / "k8s" / "jobs-deployment.yaml").exists() == (queue == "redis")
    assert {file: file.read_bytes() for file in files(project)} == before


def test_a_refusal_of_cruft_gives_the_command_of_cruft(
    cruft: Callable[..., str], history: History, tmp_path: Path
) -> None:
    answers = json.dumps({"project_name": "O'Connor's", "cpu_limit": "two"})
    with pytest.raises(AssertionError) as refused:
        cruft("create", "-y", "--extra-context", answers, history.folder, cwd=tmp_path)
    _, _, said = str(refused.value).partition("The same answers again")
    (command,) = re.findall(r"^ *(cruft create .*?\}')$", said, re.M | re.S)
    command = command.replace(">>> two <<<", "1500m")
    path = f"{BIN}:{os.environ['PATH']}"
    run("sh", "-c", command, cwd=tmp_path, PATH=path, HOME=str(tmp_path))
    readme = tmp_path / "o-connor-s" / "README.md"
    assert readme.read_text().startswith("# O'Connor's\n")


@pytest.fixture
def into(template: Path, tmp_path: Path) -> Callable[..., str]:
    """Generates into tmp_path, where something may be."""

    def into(*options: str) -> str:
        command: list[str | Path] = [BIN / "cookiecutter", "--no-input", template, *options]
        return run(*command, cwd=tmp_path, HOME=str(tmp_path / "home"), PWD=str(tmp_path))

    return into


MINE = ("jobs/mine.py", "job_views.py", "tests/test_job_of_mine.py", "k8s/jobs-of-mine.yaml")


@contextmanager
def mine(project: Path) -> Iterator[None]:
    """Files of the user's, with names like the template's."""
    (package,) = (project / "src").iterdir()
    own = [package / MINE[0], package / MINE[1], *(project / name for name in MINE[2:])]
    for file in own:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine\n")
    yield
    for file in own:
        assert file.read_text() == "mine\n"


def test_generating_again_deletes_nothing(into: Callable[..., str], tmp_path: Path) -> None:
    into()
    project = tmp_path / "my-service"
    change(project / "README.md", "## Run it", "## Ours")
    with mine(project):
        into("-f", "-s")
        assert "## Ours" in (project / "README.md").read_text()
        into("-f")
        assert "## Run it" in (project / "README.md").read_text()


def test_what_an_option_leaves_behind_is_named(
    into: Callable[..., str], bake: Bake, tmp_path: Path
) -> None:
    into("job_queue=redis")
    project = tmp_path / "my-service"
    said = into("-f", "ci=none")
    deletion = re.findall("git rm .*", said)[0]
    assert "kubectl delete -f k8s/jobs-deployment.yaml " in said
    run("sh", "-c", deletion, cwd=project)
    expected = bake(job_queue="none", ci="none")
    assert {file.relative_to(project) for file in files(project)} == {
        file.relative_to(expected) for file in files(expected)
    }


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if name not in AWKWARD])
def test_is_right_without_the_hooks(
    name: str, into: Callable[..., str], bake: Bake, tmp_path: Path
) -> None:
    answers = [f"{key}={value}" for key, value in COMBINATIONS[name].items()]
    into("--accept-hooks", "no", *answers)
    bare, hooked = tmp_path / "my-service", bake(**COMBINATIONS[name])
    made = {path.relative_to(bare) for path in bare.rglob("*") if path.is_file()}
    assert made == {file.relative_to(hooked) for file in files(hooked)}
    assert all((bare / file).read_bytes() == (hooked / file).read_bytes() for file in made)


def test_a_project_updates_with_the_cruft_that_is_tested(bake: Bake) -> None:
    makefile = (bake(job_queue="none") / "Makefile").read_text()
    pinned = re.findall(r"(cruft|cookiecutter)==(\S+)", makefile)
    tested = (ROOT / "requirements-dev.txt").read_text()
    assert len(pinned) == 2
    assert all(f"\n{name}=={version} " in tested for name, version in pinned)


def test_a_project_of_unknown_origin_is_told_how_to_name_it(installed: Bake) -> None:
    with pytest.raises(AssertionError, match=r"cruft link --checkout COMMIT TEMPLATE"):
        run("make", "update", cwd=installed())
