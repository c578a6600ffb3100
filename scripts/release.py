"""`make release`: what names a version names one, the newest; then it is tagged."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> str:
    return subprocess.run(
        ("git", *arguments), cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def versions() -> dict[str, str]:
    """Each file that names the version, and the one that it names."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    return {
        "pyproject.toml": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "version"
        ],
        "cookiecutter.json (what .cruft.json shows)": json.loads(
            (ROOT / "cookiecutter.json").read_text()
        )["_version"],
        "CHANGELOG.md (its first section)": newest[1] if newest else "",
    }


def problems() -> list[str]:
    named = versions()
    version = named["pyproject.toml"]
    found = [
        f"{file} says {other!r}, pyproject.toml {version!r}."
        for file, other in named.items()
        if other != version
    ]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"{version!r} is no version such as 1.2.3.")
    if git("status", "--porcelain"):
        found.append("There are changes that are not committed.")
    if f"v{version}" in git("tag", "--list").splitlines():
        found.append(f"v{version} is tagged already: name a new version in all three files.")
    return found


if found := problems():
    sys.exit("Nothing is tagged:\n" + "\n".join(f"  {problem}" for problem in found))
tag = f"v{versions()['pyproject.toml']}"
git("tag", "--annotate", tag, "--message", tag)
print(f"{tag} is tagged. Publish it: git push origin main {tag}")
