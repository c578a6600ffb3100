"""Whatever the answers, the manifests are ones that a cluster accepts, and fit together."""

import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from conftest import Answers, require, run
from test_answers import DEFAULT, SUPPORTED_COMBINATIONS

SIZES: dict[str, Answers] = {
    "small": {"cpu_limit": "100m", "memory_limit": "120Mi"},
    "a lot of little": {"cpu_limit": "64", "memory_limit": "256Mi"},
    "large": {"cpu_limit": "16", "memory_limit": "0.0625Ti"},
    "decimal": {"cpu_limit": "2.5", "memory_limit": "1500M"},
    "bytes": {"cpu_limit": "3000m", "memory_limit": "536870912"},
}
# The CI that one chose is in no manifest.
COMBINATIONS = SIZES | {
    name: answers
    for name, answers in SUPPORTED_COMBINATIONS.items()
    if answers.get("ci") not in ("gitlab", "none")
}
KUBERNETES = ("1.33", "1.34", "1.35", "1.36", "1.37")
CHECKOV = "checkov==3.3.30"  # in an environment of its own: it holds back what the others need
WORKER_MEMORY, MEMORY_SHARE = 96 * 2**20, 0.8
METRIC_FILES = 384 * 2**10  # of one process: 1,700 numbers with their names, those of 90 routes
CONTAINERS = ("initContainers", "containers")
BIN = Path(sys.executable).parent

Bake = Callable[..., Path]
Manifest = dict[str, Any]


@pytest.fixture(params=list(COMBINATIONS.values()), ids=list(COMBINATIONS))
def project(request: pytest.FixtureRequest, bake: Bake) -> Path:
    return bake(**request.param)


def manifests(project: Path) -> dict[str, Manifest]:
    """What makes the web service, by kind, as `kubectl apply -f k8s/` reads it."""
    found = [yaml.safe_load(path.read_text()) for path in project.glob("k8s/*.yaml")]
    return {each["kind"]: each for each in found if not is_part_of_jobs(each)}


def is_part_of_jobs(manifest: Manifest) -> bool:
    labels: dict[str, str] = manifest["metadata"]["labels"]
    return labels.get("app.kubernetes.io/component") == "jobs"


def rendered(project: Path, folder: str = ".") -> list[Manifest]:
    output = run(require("kubectl"), "kustomize", folder, cwd=project)
    return list(yaml.safe_load_all(output))


def template_of(project: Path) -> Manifest:
    template: Manifest = manifests(project)["Deployment"]["spec"]["template"]
    return template


def pod(project: Path) -> Manifest:
    spec: Manifest = template_of(project)["spec"]
    return spec


def containers(project: Path) -> dict[str, Manifest]:
    return {each["name"]: each for kind in CONTAINERS for each in pod(project)[kind]}


def size(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    factors = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    factors |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
    return float(number) * factors[unit]


# --- what tools say


def test_valid_in_every_version(project: Path) -> None:
    files = [yaml.safe_load(path.read_text()) for path in project.glob("k8s/*.yaml")]
    for manifest in [*files, *rendered(project), *rendered(project, "overlays/staging")]:
        validate(json.dumps(manifest))


@functools.cache
def validate(manifest: str) -> None:
    """Once for all combinations that have it."""
    for version in KUBERNETES:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_kubectl_reads_the_folder(project: Path) -> None:
    """All of k8s/*.yaml, and not the Kustomization beside them: no cluster knows that kind."""
    read = run(
        *(require("kubectl"), "label", "--local", "--filename", "k8s/", "a=b", "--output", "json"),
        cwd=project,
    )
    decoder, kinds = json.JSONDecoder(), []
    while read := read.lstrip():
        manifest, end = decoder.raw_decode(read)
        kinds.append(manifest["kind"])
        read = read[end:]
    assert sorted(kinds) == sorted(m["kind"] for m in rendered(project))


def test_hadolint_has_nothing_to_say(project: Path) -> None:
    assert not run(BIN / "hadolint", "Dockerfile", cwd=project)


def test_checkov_has_nothing_to_say(bake: Bake) -> None:
    projects = [bake(**answers) for answers in COMBINATIONS.values()]
    folders = [argument for project in projects for argument in ("--directory", str(project))]
    report = run(
        *(BIN / "uv", "tool", "run", "--from", CHECKOV, "checkov", "--skip-download"),
        *("--config-file", projects[0] / ".checkov.yaml"),
        *("--framework", "kubernetes", "dockerfile", *folders),
        cwd=projects[0],
        BC_SKIP_MAPPING="TRUE",
    )
    for framework in ("dockerfile", "kubernetes"):
        assert report.count(f"{framework} scan results") == len(projects)
    assert not re.search(r"Failed checks: [1-9]|Parsing errors: [1-9]", report), report


# --- what makes it a service that rolls, scales and is safe


def test_every_selector_selects_the_pods(project: Path) -> None:
    found = manifests(project)
    pods = template_of(project)["metadata"]["labels"]
    assert pods.keys() == {"app.kubernetes.io/name", "app.kubernetes.io/component"}
    spread = [each["labelSelector"] for each in pod(project)["topologySpreadConstraints"]]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(selector["matchLabels"] for selector in spread),
    ]
    assert selectors == [pods] * len(selectors)


def test_every_name_refers_to_something(project: Path) -> None:
    found = manifests(project)
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = found["Deployment"]
    assert (target["apiVersion"], target["kind"], target["name"]) == (
        *(deployment["apiVersion"], deployment["kind"]),
        deployment["metadata"]["name"],
    )
    assert pod(project)["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    for container in containers(project).values():
        first, *others = (source["configMapRef"]["name"] for source in container["envFrom"])
        assert first == found["ConfigMap"]["metadata"]["name"]
        assert all(
            (project / f"k8s/{name.removeprefix(f'{first}-')}.yaml").exists() for name in others
        )
    for manifest in found.values():
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == deployment["metadata"]["name"]
        assert "namespace" not in manifest["metadata"], "kubectl or an overlay says which"


def test_names_are_legal(project: Path) -> None:
    name = manifests(project)["Service"]["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)


def test_ports_are_named_once(project: Path) -> None:
    found = manifests(project)
    web = containers(project)["web"]
    assert [port["name"] for port in web["ports"]] == ["http", "admin"]
    assert "ports" not in containers(project)["compute"]
    assert [port["targetPort"] for port in found["Service"]["spec"]["ports"]] == ["http"]
    probes = [web[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["port"] for probe in probes} == {"admin"}
    assert [probe["path"] for probe in probes] == ["/startupz", "/readyz", "/livez"]
    anyone, monitoring = found["NetworkPolicy"]["spec"]["ingress"]
    assert anyone == {"ports": [{"port": "http"}]}
    assert monitoring["ports"] == [{"port": "admin"}]


def test_pod_security_is_restricted(project: Path) -> None:
    spec = pod(project)
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in containers(project).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", []))
    assert all(volume.keys() & {"emptyDir", "secret"} for volume in spec["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["automountServiceAccountToken"] is False
    user = re.findall(r"^USER (.*)$", (project / "Dockerfile").read_text(), re.MULTILINE)[-1]
    assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", user), "runAsNonRoot needs a number"


def test_resources_follow_the_answers(bake: Bake) -> None:
    for answers in COMBINATIONS.values():
        project = bake(**answers)
        cpu, memory = answers.get("cpu_limit", "2"), answers.get("memory_limit", "512Mi")
        for container in containers(project).values():
            limits, requests = (container["resources"][kind] for kind in ("limits", "requests"))
            assert limits == {"cpu": cpu, "memory": memory}
            assert 0 < size(requests["cpu"]) < size(cpu)
            assert 0 < size(requests["memory"]) <= size(memory)
            given = {
                env["name"]: env["valueFrom"]["resourceFieldRef"]
                for env in container["env"]
                if "valueFrom" in env
            }
            assert given == {
                "CPU_REQUEST": {"resource": "requests.cpu", "divisor": "1m"},
                "CPU_LIMIT": {"resource": "limits.cpu", "divisor": "1m"},
                "MEMORY_LIMIT": {"resource": "limits.memory", "divisor": "1"},
            }


def test_memory_holds_workers_and_what_they_write(project: Path) -> None:
    limits = containers(project)["web"]["resources"]["limits"]
    memory = size(limits["memory"])
    fit = max(int(memory * MEMORY_SHARE / WORKER_MEMORY), 1)
    workers = min(math.ceil(size(limits["cpu"])), fit)
    # in each container: the arbiter, and all workers twice while they are replaced
    processes = len(containers(project)) * (1 + 2 * workers + 1)
    volumes = {volume["name"]: volume.get("emptyDir") for volume in pod(project)["volumes"]}
    room = size(volumes["run"]["sizeLimit"])
    assert volumes["run"]["medium"] == "Memory"
    assert 2 * processes * METRIC_FILES <= room <= (1 - MEMORY_SHARE) * memory


def test_paths_are_on_volumes_that_both_containers_mount(project: Path) -> None:
    web, compute = containers(project)["web"], containers(project)["compute"]
    shared = [mount for mount in web["volumeMounts"] if not mount.get("readOnly")]
    assert shared == compute["volumeMounts"]
    assert pod(project)["shareProcessNamespace"]  # a scrape looks at the processes of both
    assert {m["name"] for m in web["volumeMounts"]} == {v["name"] for v in pod(project)["volumes"]}
    values = {env["name"]: env["value"] for env in web["env"] if "value" in env}
    paths = {values["COMPUTE_URL"].removeprefix("unix:"), values["PROMETHEUS_MULTIPROC_DIR"]}
    assert {os.path.dirname(path) for path in paths} == {web["volumeMounts"][0]["mountPath"]}  # noqa: PTH120
    assert compute["env"] == web["env"]
    assert compute["startupProbe"]["exec"]["command"][-1] in paths


def test_compute_is_a_sidecar(project: Path) -> None:
    web, compute = containers(project)["web"], containers(project)["compute"]
    assert compute["restartPolicy"] == "Always"
    assert (web["args"], compute["args"]) == (["web"], ["compute"])
    assert web["image"] == compute["image"]


def test_rolls_scales_and_moves(project: Path) -> None:
    found = manifests(project)
    deployment, hpa = found["Deployment"]["spec"], found["HorizontalPodAutoscaler"]["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment, "the autoscaler's"
    (metric,) = hpa["metrics"]
    source = metric["containerResource"]
    assert source["name"] in containers(project)[source["container"]]["resources"]["requests"]
    assert source["target"]["averageUtilization"] < 100, "a full node gives no more"
    assert 1 < hpa["minReplicas"] < hpa["maxReplicas"]
    disruption = found["PodDisruptionBudget"]["spec"]
    assert 0 < disruption["maxUnavailable"] < hpa["minReplicas"]


# --- kustomize, and what make does with it


@pytest.mark.parametrize("pinned", ["newTag: 1.2.3", f"digest: sha256:{'0' * 64}"])
def test_kustomization_pins_the_image(pinned: str, copy: Callable[[], Path]) -> None:
    project = copy()
    file = project / "kustomization.yaml"
    file.write_text(re.sub("newTag: latest.*", pinned, file.read_text()))
    assert images(rendered(project)) == {
        f"my-service{'@' if 'digest' in pinned else ':'}{pinned.partition(': ')[2]}"
    }


def test_a_changed_setting_replaces_the_pods(copy: Callable[[], Path]) -> None:
    """With `apply -k` as the ConfigMap gets another name, with `apply -f` once it is stamped."""
    project = copy()
    before = templates(rendered(project)), templates(list(manifests(project).values()))
    run("make", "stamp", cwd=project)
    assert not run("git", "status", "--porcelain", cwd=project), "generated with its stamp"
    file = project / "k8s" / "configmap.yaml"
    file.write_text(file.read_text().replace("LOG_LEVEL: info", "LOG_LEVEL: debug"))
    assert templates(rendered(project)) != before[0]
    assert templates(list(manifests(project).values())) == before[1]
    run("make", "stamp", cwd=project)
    assert templates(list(manifests(project).values())) != before[1]


def test_the_overlay_differs_in_what_it_says(project: Path) -> None:
    base, staging = (
        {each["kind"]: each for each in rendered(project, folder) if not is_part_of_jobs(each)}
        for folder in (".", "overlays/staging")
    )
    assert {manifest["metadata"]["namespace"] for manifest in staging.values()} == {"staging"}
    data = base["ConfigMap"]["data"]
    assert staging["ConfigMap"]["data"] == data | {"LOG_LEVEL": "debug"}
    assert templates([staging["Deployment"]]) != templates([base["Deployment"]])
    assert staging["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 2


def test_make_deploy_names_the_image(project: Path) -> None:
    mine = containers(project)["web"]["image"].rpartition(":")[0]
    for image, given in ((mine, []), ("ghcr.io/some/one", ["IMAGE=ghcr.io/some/one"])):
        commands = run("make", "--dry-run", "deploy", "TAG=1.2.3", *given, cwd=project)
        (render,) = re.findall(
            r"^(kubectl kustomize .*) \| kubectl apply -f -$", commands, re.MULTILINE
        )
        found = images(list(yaml.safe_load_all(run("sh", "-c", render, cwd=project))))
        assert found == {f"{image}:1.2.3"}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("image", "Neither docker nor podman answers"),
        ("deploy", "There is no kubectl here"),
        ("undeploy", "There is no kubectl here"),
    ],
)
def test_make_says_what_is_missing(target: str, says: str, bake: Bake, tmp_path: Path) -> None:
    for command in ("sh", "awk", "make"):
        (tmp_path / command).symlink_to(require(command))
    output = run("sh", "-c", f"! make {target} 2>&1", cwd=bake(**DEFAULT), PATH=str(tmp_path))
    assert says in output


@pytest.fixture
def copy(bake: Bake, tmp_path: Path) -> Callable[[], Path]:
    def copy() -> Path:
        run("git", "clone", "--quiet", bake(**DEFAULT), tmp_path / "project", cwd=tmp_path)
        return tmp_path / "project"

    return copy


def templates(found: list[Manifest]) -> list[Manifest]:
    return [each["spec"]["template"] for each in found if each["kind"] == "Deployment"]


def images(found: list[Manifest]) -> set[str]:
    specs = [template["spec"] for template in templates(found)]
    return {each["image"] for spec in specs for kind in CONTAINERS for each in spec.get(kind, [])}
