"""The whole installation as docker-compose.yml describes it: dependencies of the services, and the
fit of its pieces."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from niwaki.stream.config import load_config

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
OURS = ("trainer", "server", "replay")
JOBS = ("replay",)  # they end, so there is no health to ask for


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_services_are_the_parts_of_the_path():
    assert set(SERVICES) == {
        "kafka",
        "redis",
        "trainer",
        "server",
        "prometheus",
        "replay",
        "grafana",
    }


def test_what_a_user_may_not_want_is_behind_a_profile():
    profiles = {
        name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service
    }
    assert profiles == {"replay": ["replay"], "grafana": ["grafana"]}


def test_there_is_no_version_so_that_old_and_new_compose_take_it():
    assert "version" not in COMPOSE


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in JOBS])
def test_each_service_has_a_health_check_and_is_restarted(name):
    health = SERVICES[name]["healthcheck"]
    assert health["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(health)
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_waits_until_what_it_needs_is_healthy(name):
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[needed]
        assert set(SERVICES[needed].get("profiles", ())) <= set(SERVICES[name].get("profiles", ()))


def test_the_path_is_joined_up():
    needs = {name: set(service.get("depends_on", ())) for name, service in SERVICES.items()}
    assert needs["trainer"] == {"kafka", "redis"}
    assert needs["server"] == {"redis"}
    assert needs["replay"] == {"trainer"}
    assert needs["prometheus"] == {"trainer", "server"}


def test_our_parts_share_one_image_that_is_built_here():
    assert {SERVICES[name]["image"] for name in OURS} == {"niwaki"}
    assert all(SERVICES[name]["build"]["context"] == "." for name in OURS)


def test_others_images_are_pinned_to_a_version():
    for name in set(SERVICES) - set(OURS):
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", SERVICES[name]["image"]), name


def test_what_must_outlive_a_container_is_in_a_named_volume():
    kept = {
        "kafka": "/var/lib/kafka/data",
        "redis": "/data",
        "prometheus": "/prometheus",
        "trainer": "/var/lib/niwaki",
        "grafana": "/var/lib/grafana",
    }
    for name, place in kept.items():
        assert f"{name}:{place}" in SERVICES[name]["volumes"]
        assert name in COMPOSE["volumes"]
    assert SERVICES["trainer"]["environment"]["NIWAKI_SNAPSHOT__DIRECTORY"] == kept["trainer"]


def test_files_that_are_mounted_exist():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists(), f"{name}: {volume}"


def test_ports_are_open_to_this_machine_only():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", OURS)
def test_the_configuration_with_the_services_own_overrides_is_valid(name):
    config = load_config(ROOT / "config/niwaki.toml", SERVICES[name]["environment"])
    assert config.kafka.bootstrap_servers == "kafka:9092"
    assert config.redis.url == "redis://redis:6379/0"
    assert config.telemetry.host == "0.0.0.0"
    assert config.events_schema().label
    assert config.kafka.create_topics == (name == "trainer")  # replay waits for the trainer


def test_ports_that_are_scraped_and_asked_for_health_are_those_that_are_listened_on():
    config = load_config(ROOT / "config/niwaki.toml", SERVICES["trainer"]["environment"])
    ports = {"trainer": config.telemetry.port, "server": config.serve.port}
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load(text("config/prometheus.yml"))["scrape_configs"]
    }
    for name, port in ports.items():
        assert jobs[name]["static_configs"] == [{"targets": [f"{name}:{port}"]}]
        assert f"localhost:{port}/" in SERVICES[name]["healthcheck"]["test"][-1]
        assert SERVICES[name]["ports"][0].endswith(f":{port}")
        assert re.search(rf"^EXPOSE .*\b{port}\b", text("Dockerfile"), re.MULTILINE)


def test_the_image_needs_no_buildkit_and_runs_as_nobody_special():
    dockerfile = text("Dockerfile")
    assert "--mount" not in dockerfile
    assert not dockerfile.startswith("# syntax")
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["niwaki"]


def test_everything_that_the_image_copies_gets_into_its_context():
    ignored = text(".dockerignore").splitlines()
    for line in re.findall(r"^COPY (.+)$", text("Dockerfile"), re.MULTILINE):
        for source in line.split()[:-1]:
            assert f"!{source}" in ignored
            assert (ROOT / source).exists()


def test_the_image_compiles_modules_that_exist_and_installs_after_all_is_copied():
    dockerfile = text("Dockerfile")
    (module,) = re.findall(r'python -c "import (niwaki[\w.]*)"', dockerfile)
    assert find_spec(module)
    install = dockerfile.index("pip install --no-deps .")
    assert all(match.start() < install for match in re.finditer(r"^COPY ", dockerfile, re.M))
    copied = re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE)
    assert set(copied) == {"niwaki", "pruning", "model", "serving", "stream"}


def test_torch_comes_from_one_index_everywhere():
    places = (text("Makefile"), text("Dockerfile"), text("docker-compose.yml"))
    defaults = [
        re.findall(r"TORCH_INDEX_URL(?: \?= |=|:-)(https[^\s}]+)", place) for place in places
    ]
    assert [len(found) for found in defaults] == [1, 1, 1]
    assert len({found[0] for found in defaults}) == 1


@pytest.mark.parametrize("compose", [["docker-compose"], ["docker", "compose"]], ids=" ".join)
def test_compose_itself_takes_the_file(compose):
    if (
        not shutil.which(compose[0])
        or subprocess.run([*compose, "version"], capture_output=True).returncode
    ):
        pytest.skip(f"no {' '.join(compose)} here")
    arguments = ["--profile", "replay", "--profile", "grafana", "config"]
    done = subprocess.run([*compose, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)
