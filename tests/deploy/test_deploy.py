"""Container files, manifests, dashboards and alerts: linted by well-kept tools, and true to the program they run."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from cloud.config import BY_KEY, SETTINGS, load_config
from thinwire.v1 import inference_pb2

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
BIN = Path(sys.executable).parent


def tool(name: str) -> str:
    path = BIN / name
    found = str(path) if path.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=240)


# ---------------------------------------------------------------- linters


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name):
    done = run(tool("hadolint"), "--failure-threshold", "style", DEPLOY / name)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_sent_to_the_builder(name):
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / name).read_text(), re.MULTILINE)
    sources = {source for line in copies for source in line.split()}
    assert len(sources) > 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_health_checks_go_past_proxies(name):
    assert "ProxyHandler({})" in (DEPLOY / name).read_text().partition("HEALTHCHECK")[2]


def test_hadolint_would_say_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp\n")
    assert run(tool("hadolint"), bad).returncode != 0


def test_the_compose_file_fits_the_compose_specification(tmp_path):
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    assert run(*check, DEPLOY / "compose.yaml").returncode == 0
    bad = tmp_path / "compose.yaml"
    bad.write_text((DEPLOY / "compose.yaml").read_text().replace("restart: unless-stopped", "restrat: always"))
    assert run(*check, bad).returncode == 1


def test_manifests_fit_the_kubernetes_schema(tmp_path):
    done = run(tool("kubernetes-validate"), "--strict", *MANIFESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text(MANIFESTS[-1].read_text().replace("readinessProbe:", "redinessProbe:"))
    assert run(tool("kubernetes-validate"), "--strict", bad).returncode != 0


# ---------------------------------------------------------------- true to the program


def documents(name: str = "thinwire.yaml") -> dict[str, dict]:
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())}


def settings_of(words: list[str], environment: dict[str, str] | None = None):
    from cloud.config import add_flags

    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load_config(parser.parse_args(words), environment or {})


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_start_the_service_with_settings_that_exist(name):
    text = (DEPLOY / name).read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])$", text, re.M)[1])
    assert command[0] == "serve"
    config = settings_of(command[1:])
    assert config["host"] == "0.0.0.0"
    assert config["page"] is False  # beyond loopback, pictures stay inside
    ports = {int(port) for port in re.search(r"^EXPOSE (.*)$", text, re.M)[1].split()}
    assert ports == {config["port"], config["http_port"]}
    assert str(config["http_port"]) in re.search(r"^HEALTHCHECK.*$", text, re.M)[0]
    variables = set(re.findall(r"THINWIRE_[A-Z_]+(?==)", text)) - {"THINWIRE_CACHE"}
    assert variables <= {setting.variable for setting in SETTINGS}
    copied = set(re.findall(r"^COPY (\w+) \1$", text, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {each.rstrip("*") for each in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == rooms | {"native"}  # each room that the wheel is made of is in the build, and the coder in C
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{room}" in ignored for room in rooms)


def test_the_compose_service_uses_settings_that_exist():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    config = settings_of([], services["thinwire"]["environment"])
    assert config["allow_plaintext"] is True
    for service in services.values():  # nothing is reached from elsewhere
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), volume


def test_the_pod_s_settings_exist_and_fit_its_probes(tmp_path):
    found = documents()
    file = tmp_path / "cloud.toml"
    file.write_text(found["ConfigMap"]["data"]["cloud.toml"])
    config = settings_of(["--config", str(file)])
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config["port"], "metrics": config["http_port"]}
    assert config["page"] is False
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == config["port"]
    full_name = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
    assert container["readinessProbe"]["grpc"]["service"] == full_name
    assert config["max_connection_age"] > 0
    assert pod["terminationGracePeriodSeconds"] > config["drain_delay"] + config["grace"]
    assert found["Service"]["metadata"]["name"] != "thinwire"  # THINWIRE_PORT=tcp://...
    assert pod["enableServiceLinks"] is False
    assert found["Service"]["spec"]["clusterIP"] == "None"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    gpu = documents("gpu.yaml")["Deployment"]
    assert gpu["metadata"]["name"] == found["Deployment"]["metadata"]["name"]
    assert "nvidia.com/gpu" in gpu["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_envoy_routes_to_the_service_and_not_to_search():
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "envoy.yaml").read_text()))
    config = yaml.safe_load(next(each for each in found if each["kind"] == "ConfigMap")["data"]["envoy.yaml"])
    (listener,), (cluster,) = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    prefixes = [route["match"]["prefix"] for route in routes]
    assert prefixes == ["/thinwire.v1.InferenceService/", "/grpc.health.v1.Health/"]
    address = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    service = documents()["Service"]
    assert address["address"] == service["metadata"]["name"]
    assert address["port_value"] in [port["port"] for port in service["spec"]["ports"]]


# ---------------------------------------------------------------- dashboards and alerts


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Every series that a service with a store exports, device memory's included."""
    from types import SimpleNamespace

    from cloud.watch.metrics import Metrics

    clip = SimpleNamespace(device="cpu")
    engine = SimpleNamespace(load=(0, 0), limits=SimpleNamespace(queue_items=1), heads=SimpleNamespace(clip=clip))
    archive = SimpleNamespace(store=SimpleNamespace(frames=0, bytes=0), dropped=0)
    names = set()
    for family in Metrics(engine, archive).registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def queries() -> list[str]:
    board = json.loads((DEPLOY / "grafana" / "thinwire.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_queries_are_promql_over_series_that_exist(exported):
    promql = pytest.importorskip("promql_parser", reason="needs promql-parser")
    assert len(queries()) > 20
    for query in queries():
        promql.parse(query.replace("$__rate_interval", "1m"))
        used = set(re.findall(r"\b(?:thinwire|process)_\w+", query))
        assert used <= exported, query
    with pytest.raises(ValueError):
        promql.parse("rate(thinwire_requests_total)[5m")


def test_the_dashboard_is_the_one_that_is_written():
    done = run(sys.executable, ROOT / "scripts" / "grafana_dashboard.py", "--check")
    assert done.returncode == 0, done.stderr


def test_alerts_lead_to_the_runbook():
    page = (ROOT / "docs" / "operations.md").read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", page, re.M)
    }
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "docs/operations.md"
        assert anchor in anchors, f"{rule['alert']}: {anchor} is none of {sorted(anchors)}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_scrape_port_is_the_image_s():
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    command = json.loads(re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)[1])
    assert scrape["static_configs"][0]["targets"] == [f"thinwire:{settings_of(command[1:])['http_port']}"]
    assert BY_KEY["http_port"].default is None
