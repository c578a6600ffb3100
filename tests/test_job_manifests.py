"""With jobs in Redis: their workers are as confined, probed and scaled as the web is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run
from test_answers import RICHEST

Manifest = dict[str, Any]


@pytest.fixture
def project(bake: Callable[..., Path]) -> Path:
    return bake(**RICHEST)


def read(project: Path, name: str) -> Manifest:
    manifest: Manifest = yaml.safe_load((project / "k8s" / f"{name}.yaml").read_text())
    return manifest


def test_job_pods_are_as_confined_as_web_pods(project: Path) -> None:
    web, jobs = (
        read(project, name)["spec"]["template"]["spec"]
        for name in ("deployment", "jobs-deployment")
    )
    for key in ("securityContext", "serviceAccountName", "automountServiceAccountToken"):
        assert jobs[key] == web[key]
    (ours,), (theirs,) = jobs["containers"], web["containers"]
    for key in ("image", "securityContext", "resources", "envFrom", "volumeMounts"):
        assert ours[key] == theirs[key]
    for kind in ("startup", "readiness", "liveness"):
        assert ours[f"{kind}Probe"] == theirs[f"{kind}Probe"]
    assert ours["args"] == ["jobs"]


def test_every_name_refers_to_something(project: Path) -> None:
    jobs = read(project, "jobs-deployment")
    name, labels = jobs["metadata"]["name"], jobs["spec"]["template"]["metadata"]["labels"]
    assert jobs["spec"]["selector"]["matchLabels"] == labels
    assert read(project, "jobs-networkpolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert labels != read(project, "deployment")["spec"]["template"]["metadata"]["labels"]
    assert read(project, "jobs-hpa")["spec"]["scaleTargetRef"]["name"] == name
    assert "replicas" not in jobs["spec"], "the autoscaler's"
    (*_, redis) = jobs["spec"]["template"]["spec"]["volumes"]
    trigger, scaled = yaml.safe_load_all((project / "k8s/keda/scaledobject.yaml").read_text())
    assert scaled["spec"]["scaleTargetRef"]["name"] == name
    assert redis["secret"]["secretName"] == trigger["spec"]["secretTargetRef"][0]["name"]
    given = read(project, "redis")["data"]["REDIS_PASSWORD_FILE"]
    assert given == f"/run/redis/{trigger['spec']['secretTargetRef'][0]['key']}"


def test_job_pods_have_time_to_drain(project: Path) -> None:
    data = read(project, "configmap")["data"]
    spec = read(project, "jobs-deployment")["spec"]["template"]["spec"]
    assert 2 * float(data["GRACEFUL_TIMEOUT"]) < spec["terminationGracePeriodSeconds"]


def test_a_changed_setting_is_stamped_on_job_pods_too(project: Path, tmp_path: Path) -> None:
    run("git", "clone", "--quiet", project, tmp_path / "project", cwd=tmp_path)
    run("make", "stamp", cwd=tmp_path / "project")
    assert not run("git", "status", "--porcelain", cwd=tmp_path / "project")
