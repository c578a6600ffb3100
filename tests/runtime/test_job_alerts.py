"""The alerts about jobs, in a time that promtool makes up."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from overlay import PROJECT

FILE = PROJECT / "k8s" / "monitoring" / "jobs.yaml"
(GROUP,) = list(yaml.safe_load_all(FILE.read_text()))[1]["spec"]["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}
WEB = re.search(r'job="([^"]+)"', ALERTS["JobsRefused"]["expr"])[1]  # type: ignore[index]

DEAD = f'jobs_queue_depth{{job="{WEB}-jobs", queue="q", state="dead"}}'
OLDEST = f'jobs_oldest_seconds{{job="{WEB}-jobs", queue="q"}}'
REJECTED = f'jobs_rejected_total{{job="{WEB}"}}'
HEALTHY = {DEAD: "0x60", OLDEST: "30x60", REJECTED: "7x60"}
# what happens -> the series that differ, and the alert, where there is one
CASES = {
    "all is well": ({}, ""),
    "a job has died": ({DEAD: "0x55 1x5"}, "JobsDead"),
    "a job waits": ({OLDEST: "0+60x60"}, "JobsLate"),
    "a job waited": ({OLDEST: "1000x50 30x10"}, ""),
    "Redis is away": ({REJECTED: "7x40 7+5x20"}, "JobsRefused"),
    "nobody works": ({DEAD: "0x40", OLDEST: "30x40"}, "JobWorkersMissing"),
}


def test_every_alert_fires_and_does_not(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    assert {alert for _, alert in CASES.values()} == {"", *ALERTS}
    plain = [
        {key: rule[key] for key in ("alert", "expr", "for") if key in rule}
        for rule in ALERTS.values()
    ]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "a", "rules": plain}]})
    )
    cases = []
    for title, (changes, fires) in CASES.items():
        firing = [{"labels": f'{{alertname="{fires}"}}', "value": 1}] if fires else []
        series = [{"series": s, "values": v} for s, v in (HEALTHY | changes).items()]
        expression = "count by (alertname) (ALERTS{alertstate='firing'})"
        test = {"expr": expression, "eval_time": "1h", "exp_samples": firing}
        cases.append(
            {"name": title, "interval": "1m", "input_series": series, "promql_expr_test": [test]}
        )
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", (PROJECT / "docs" / "jobs.md").read_text(), re.M)
    assert set(headings) == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/jobs.md#{name.lower()}"
