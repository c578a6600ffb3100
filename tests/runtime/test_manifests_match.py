"""What has to agree between the manifests and the service, and is changed in one of them only."""

import subprocess
from importlib import import_module
from typing import Any

import yaml
from overlay import PACKAGE, PROJECT

K8S = PROJECT / "k8s"
settings: Any = import_module(f"{PACKAGE}.runtime.settings")


def manifest(name: str) -> Any:
    return yaml.safe_load((K8S / f"{name}.yaml").read_text())


def template() -> Any:
    return manifest("deployment")["spec"]["template"]


def test_every_key_of_the_configmap_is_a_setting() -> None:
    data = manifest("configmap")["data"]
    service = settings.Settings.from_env(data)
    assert data.keys() <= service.as_json().keys()


def test_the_grace_period_holds_the_drain() -> None:
    """First the web container ends, then compute, within one grace period."""
    service = settings.Settings.from_env(manifest("configmap")["data"])
    drain = service.lame_duck + 2 * service.graceful_timeout
    grace = template()["spec"]["terminationGracePeriodSeconds"]
    assert drain < grace
    (web,) = template()["spec"]["containers"]
    env = {one["name"]: one.get("value") for one in web["env"]}
    assert env["GRACE_PERIOD"] == str(grace)


def test_a_blocked_worker_is_replaced_before_the_kubelet_restarts_the_container() -> None:
    service = settings.Settings.from_env(manifest("configmap")["data"])
    (web,) = template()["spec"]["containers"]
    probe = web["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > service.worker_timeout


def test_the_containers_listen_where_the_manifests_say() -> None:
    service = settings.Settings.from_env({})
    (web,) = template()["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in web["ports"]}
    assert ports == {"http": service.port, "admin": service.admin_port}


def test_changed_settings_replace_the_pods() -> None:
    data = (K8S / "configmap.yaml").read_bytes().partition(b"\ndata:")
    stamp = subprocess.run(["cksum"], input=data[1][1:] + data[2], capture_output=True, check=True)
    stamped = template()["metadata"]["annotations"]["checksum/settings"]
    assert stamped == stamp.stdout.split()[0].decode(), (
        "k8s/configmap.yaml was changed: run `make stamp`"
    )
