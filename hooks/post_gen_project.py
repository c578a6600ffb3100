"""Finishes the project: where it is from, a first commit, what to do next."""

import json
import os
import re
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

# As pairs, so that they keep their order.
ANSWERS: dict[str, Any] = dict(json.loads(r"""{{ cookiecutter.items() | list | tojson }}"""))
HERE = Path(os.environ.get("PWD", "."))  # of whoever called; the hook is in the project
TEMPLATE = HERE / ANSWERS.get("_repo_dir", "")
BY_CRUFT = "_commit" in ANSWERS
# Only for the first commit of somebody whom git does not know yet.
NOBODY = ("-c", "user.name=cookiecutter", "-c", "user.email=cookiecutter@localhost")


def git(*arguments: str | Path, **options: Any) -> str | None:
    """What git says; None where it fails, or is not there."""
    with suppress(OSError):
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, **options
        )
        if done.returncode == 0:
            return str(done.stdout).strip()
    return None


def origin() -> tuple[str, str] | None:
    """The template and its commit, where it is a repository as somebody committed it."""
    if BY_CRUFT:
        return ANSWERS["_template"], ANSWERS["_commit"]
    if "_repo_dir" not in ANSWERS or git("-C", TEMPLATE, "rev-parse", "--show-prefix") != "":
        return None
    commit = git("-C", TEMPLATE, "rev-parse", "HEAD")
    if not commit or git("-C", TEMPLATE, "status", "--porcelain"):
        return None
    if (HERE / ANSWERS["_template"]).exists():
        return str(TEMPLATE.resolve()), commit
    url = git("-C", TEMPLATE, "config", "remote.origin.url") or ANSWERS["_template"]
    return re.sub("//[^/]*@", "//", url), commit  # no password of whoever generated it


def remember_the_origin() -> None:
    """Writes .cruft.json, from which `make update` starts; `cruft create` writes the same."""
    found = origin()
    if not found or Path(".cruft.json").exists():
        return
    template, commit = found
    local = ("_template", "_output_dir", "_repo_dir", "_checkout", "_commit")
    context = {key: value for key, value in ANSWERS.items() if key not in local}
    state = {
        "template": template,
        "commit": commit,
        "checkout": ANSWERS.get("_checkout"),
        "context": {"cookiecutter": context | {"_template": template, "_commit": commit}},
        "directory": None,
    }
    Path(".cruft.json").write_text(
        json.dumps(state, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )


def first_commit() -> None:
    if git("rev-parse", "--git-dir") is not None or git("init") is None:
        return
    git("symbolic-ref", "HEAD", "refs/heads/main")
    git("add", "--all")
    commit = ("-c", "commit.gpgsign=false", "commit", "--no-verify", "--message")
    message = f"Generate the project from aiohttp-mp-template {ANSWERS['_version']}"
    if git(*commit, message) is None:
        git(*NOBODY, *commit, message)


def help_an_update() -> bool:
    """In an update of a project, gives it what both sides come from: git merges with it."""
    if not (BY_CRUFT and (HERE / ".cruft.json").exists()):
        return False
    folder = git("-C", HERE, "rev-parse", "--absolute-git-dir")
    if folder:
        listed = "\n".join(str(path) for path in Path().rglob("*") if path.is_file())
        store = ("hash-object", "-w", "--no-filters", "--stdin-paths")
        git(f"--git-dir={folder}", *store, input=listed)
    return True


def left_over() -> list[str]:
    """Files of options that are off now, from a generation before this one."""
    on: set[str] = set()
    off: set[str] = set()
    for path in TEMPLATE.glob("*cookiecutter.project_slug*/**/*% if *"):
        option, value, name = re.findall(r"cookiecutter\.(\w+) == '(\w+)' %.(.*?).%", path.name)[0]
        folder = (
            ANSWERS["package_name"] if "package_name" in part else part
            for part in path.relative_to(TEMPLATE).parts[1:-1]
        )
        (on if ANSWERS[option] == value else off).add("/".join((*folder, name)))
    return sorted(name for name in off - on if Path(name).exists())


def say_what_is_next() -> None:
    project = Path.cwd()
    with suppress(ValueError):
        project = project.relative_to(HERE)
    print(f"\n{ANSWERS['project_slug']} is ready. Next:\n")
    print(f"    cd {shlex.quote(str(project))}\n    make test\n    make run\n")
    if names := left_over():
        print("These files are of options that are off now, and in force until you delete them:\n")
        print(f"    git rm {shlex.join(names)}\n")
        if names := [name for name in names if name.startswith("k8s/")]:
            options = " ".join(f"-f {name}" for name in names)
            print(f"and before that, from a cluster that has them: kubectl delete {options}\n")


# Where the answers left out every file of a folder, the folder goes too.
for folder in (".github/workflows", "k8s/keda", f"src/{ANSWERS['package_name']}/runtime/jobs"):
    with suppress(OSError):
        os.removedirs(folder)

if not help_an_update():
    remember_the_origin()
    first_commit()
    say_what_is_next()
