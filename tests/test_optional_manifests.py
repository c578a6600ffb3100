"""The optional folders of k8s/: a cluster accepts what is in them, and it fits the rest."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run
from test_manifests import COMBINATIONS, Manifest, manifests, rendered, validate

Bake = Callable[..., Path]
HOST_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)+"


@pytest.fixture(params=list(COMBINATIONS.values()), ids=list(COMBINATIONS))
def project(request: pytest.FixtureRequest, bake: Bake) -> Path:
    return bake(**request.param)


@pytest.fixture(scope="session")
def with_compute(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The manifests of a project, with the line of docs/kubernetes.md in its kustomizations."""

    @functools.cache
    def with_compute(project: Path) -> Path:
        copy = tmp_path_factory.mktemp("with-compute")
        shutil.copytree(project / "k8s", copy / "k8s")
        (line,) = re.findall(
            r"`(components: \[.*\])` in `kustomization.yaml`",
            (project / "docs/kubernetes.md").read_text(),
        )
        for folder, above in ((".", ""), ("overlays/staging", "../../")):
            (copy / folder).mkdir(parents=True, exist_ok=True)
            text = (project / folder / "kustomization.yaml").read_text()
            (copy / folder / "kustomization.yaml").write_text(
                f"{text}{line.replace('[', f'[{above}')}\n"
            )
        return copy

    return with_compute


@functools.cache
def with_staging(project: Path) -> tuple[list[Manifest], list[Manifest]]:
    return rendered(project), rendered(project, "overlays/staging")


@pytest.fixture
def pools(project: Path, with_compute: Callable[[Path], Path]) -> dict[str, dict[str, Manifest]]:
    """What makes the web service and the compute pool, by component and kind."""
    found: dict[str, dict[str, Manifest]] = {}
    for each in with_staging(with_compute(project))[0]:
        component = each["metadata"]["labels"].get("app.kubernetes.io/component", "")
        found.setdefault(component, {})[each["kind"]] = each
    return found


def template(pool: dict[str, Manifest]) -> Any:
    return pool["Deployment"]["spec"]["template"]


def way_in(project: Path, folder: str) -> Manifest:
    (file,) = (project / "k8s" / folder).glob("*.yaml")
    manifest: Manifest = yaml.safe_load(file.read_text())
    return manifest


def test_valid_in_every_version(project: Path, with_compute: Callable[[Path], Path]) -> None:
    base, staging = with_staging(with_compute(project))
    for manifest in [*base, *staging, way_in(project, "ingress")]:
        validate(json.dumps(manifest))


def test_compute_in_pods_of_its_own_takes_the_place_of_the_sidecar(
    pools: dict[str, dict[str, Manifest]],
) -> None:
    web, compute = template(pools["web"])["spec"], template(pools["compute"])["spec"]
    assert not web.get("initContainers")
    assert not web["shareProcessNamespace"]
    env = {each["name"]: each.get("value") for each in web["containers"][0]["env"]}
    service = pools["compute"]["Service"]
    assert env["COMPUTE_URL"] == f"http://{service['metadata']['name']}"
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service["metadata"]["name"])
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")
    (container,) = compute["containers"]
    assert container["args"] == ["compute"]
    assert "COMPUTE_URL" not in {each["name"] for each in container["env"]}, "then it listens"


def test_compute_pods_are_as_confined_and_probed_as_web_pods(
    pools: dict[str, dict[str, Manifest]],
) -> None:
    web, compute = template(pools["web"])["spec"], template(pools["compute"])["spec"]
    for key in ("securityContext", "serviceAccountName", "automountServiceAccountToken"):
        assert compute[key] == web[key]
    assert compute["enableServiceLinks"] is False
    (theirs,), (ours,) = web["containers"], compute["containers"]
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    for key in ("image", "securityContext", "resources", "resizePolicy", "ports", *probes):
        assert ours[key] == theirs[key]
    assert ours["envFrom"][0] == theirs["envFrom"][0]
    own = {"COMPUTE_URL", "GRACE_PERIOD"}
    same, given = (
        {each["name"]: each for each in env if each["name"] not in own}
        for env in (ours["env"], theirs["env"])
    )
    assert same == given
    room = {volume["name"]: volume["emptyDir"] for volume in compute["volumes"]}
    for volume in web["volumes"]:
        assert "secret" in volume or room[volume["name"]] == volume["emptyDir"]
    assert {mount["name"] for mount in ours["volumeMounts"]} == room.keys()


def test_every_name_refers_to_something(pools: dict[str, dict[str, Manifest]]) -> None:
    compute = pools["compute"]
    labels = template(compute)["metadata"]["labels"]
    assert labels != template(pools["web"])["metadata"]["labels"]
    policy = compute["NetworkPolicy"]["spec"]
    for selector in (
        compute["Deployment"]["spec"]["selector"],
        compute["PodDisruptionBudget"]["spec"]["selector"],
        policy["podSelector"],
        {"matchLabels": compute["Service"]["spec"]["selector"]},
        *(each["labelSelector"] for each in template(compute)["spec"]["topologySpreadConstraints"]),
    ):
        assert selector["matchLabels"] == labels
    scaled = compute["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == compute["Deployment"]["metadata"]["name"]
    assert "replicas" not in compute["Deployment"]["spec"], "the autoscaler's"
    (metric,) = scaled["metrics"]
    (container,) = template(compute)["spec"]["containers"]
    assert metric["containerResource"]["container"] == container["name"]
    assert compute["PodDisruptionBudget"]["spec"]["maxUnavailable"] < scaled["minReplicas"]


def test_only_web_pods_reach_the_tasks(pools: dict[str, dict[str, Manifest]]) -> None:
    tasks, metrics = pools["compute"]["NetworkPolicy"]["spec"]["ingress"]
    web = template(pools["web"])["metadata"]["labels"]
    assert tasks == {"from": [{"podSelector": {"matchLabels": web}}], "ports": [{"port": "http"}]}
    (_, theirs) = pools["web"]["NetworkPolicy"]["spec"]["ingress"]
    assert metrics == theirs


def test_compute_pods_have_time_to_drain(pools: dict[str, dict[str, Manifest]]) -> None:
    data = pools[""]["ConfigMap"]["data"]
    drain = float(data["LAME_DUCK"]) + float(data["GRACEFUL_TIMEOUT"])
    spec = template(pools["compute"])["spec"]
    grace = spec["terminationGracePeriodSeconds"]
    assert drain < grace
    assert {"name": "GRACE_PERIOD", "value": str(grace)} in spec["containers"][0]["env"]


def test_compute_pods_are_scraped(project: Path, pools: dict[str, dict[str, Manifest]]) -> None:
    monitor = yaml.safe_load((project / "k8s/monitoring/podmonitor.yaml").read_text())
    selector = monitor["spec"]["selector"]
    (expression,) = selector["matchExpressions"]
    for component in ("web", "compute"):
        labels = template(pools[component])["metadata"]["labels"]
        assert selector["matchLabels"].items() <= labels.items()
        assert labels[expression["key"]] in expression["values"]


def test_make_undeploy_removes_every_kind(project: Path, pools: dict[str, Any]) -> None:
    command = run("make", "--dry-run", "undeploy", cwd=project)
    (named,) = re.findall(r"kubectl delete (\S+) --selector", command)
    short = {"horizontalpodautoscaler": "hpa", "poddisruptionbudget": "pdb"}
    kinds = {kind.lower() for pool in pools.values() for kind in pool} | {"ingress"}
    assert {short.get(kind, kind) for kind in kinds} == set(named.split(","))


def test_an_ingress_leads_to_the_service(project: Path) -> None:
    service = manifests(project)["Service"]
    spec = way_in(project, "ingress")["spec"]
    (rule,) = spec["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/", "Prefix")
    assert path["backend"]["service"] == {
        "name": service["metadata"]["name"],
        "port": {"name": service["spec"]["ports"][0]["name"]},
    }
    assert re.fullmatch(HOST_NAME, rule["host"])
    assert [tls["hosts"] for tls in spec["tls"]] == [[rule["host"]]]


def test_a_route_of_the_gateway_api_leads_to_the_service(project: Path) -> None:
    """By hand, as no package has its schema: the fields of v1, each of its type."""
    service = manifests(project)["Service"]
    route = way_in(project, "gateway")
    assert (route["apiVersion"], route["kind"]) == ("gateway.networking.k8s.io/v1", "HTTPRoute")
    assert route.keys() == {"apiVersion", "kind", "metadata", "spec"}
    spec = route["spec"]
    assert spec.keys() == {"parentRefs", "hostnames", "rules"}
    (parent,) = spec["parentRefs"]
    assert parent.keys() == {"name", "namespace"}
    (host,) = spec["hostnames"]
    assert re.fullmatch(HOST_NAME, host)
    assert host == way_in(project, "ingress")["spec"]["rules"][0]["host"]
    assert spec["rules"] == [
        {
            "backendRefs": [
                {
                    "name": service["metadata"]["name"],
                    "port": service["spec"]["ports"][0]["port"],
                }
            ]
        }
    ]
