"""docker-compose.yml: what can be said of it without starting anything."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from ondol.settings import TrainerSettings, WorkerSettings, load_settings
from ondol.settings_table import describe_settings
from tests.deploy.compose_file import COMPOSE_FILE, ROOT, Service, load_compose, load_services, named_variables

pytestmark = pytest.mark.unit

OURS = ("api", "reconciler", "intake", "flower", "worker-", "trainer-", "migrate")
OTHERS_VARIABLES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE", "NVIDIA_DRIVER_CAPABILITIES"}


def ours() -> list[Service]:
    return [service for service in load_services().values() if service.name.startswith(OURS)]


def test_the_file_is_what_the_compose_specification_allows() -> None:
    PyCompose.from_json(json.dumps(load_compose())).validate()
    broken = load_compose()
    broken["services"]["api"]["restrat"] = "always"
    with pytest.raises(ValueError, match="restrat"):
        PyCompose.from_json(json.dumps(broken))


def test_every_variable_is_said_in_the_head_and_has_a_default() -> None:
    text = COMPOSE_FILE.read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#   "))
    said = {word.strip(",") for line in head.splitlines() for word in line[4:].split("  ")[0].split()}
    assert named_variables(text) == {word for word in said if re.fullmatch(r"[A-Z][A-Z0-9_]+", word)}
    load_compose()  # ValueError where a variable has no default


def test_every_variable_of_a_service_is_a_setting_that_its_process_reads() -> None:
    readers = {row.name: row.processes for row in describe_settings()}
    for service in load_services().values():
        for name in service.environment.keys() - OTHERS_VARIABLES:
            assert name in readers, (service.name, name)
    own = {"ONDOL_HOST", "ONDOL_PORT", "ONDOL_AUTH", "ONDOL_DEVICE", "ONDOL_CORES", "ONDOL_GRACE_S"}
    own |= {"ONDOL_TRAIN_GRACE_S", "ONDOL_FLOWER_PORT", "ONDOL_FLOWER_HOST", "ONDOL_PRODUCER_PROJECT", "ONDOL_MODELS"}
    for service in ours():
        for name in service.environment.keys() & own:
            assert service.name.split("-")[0] in readers[name], (service.name, name)


def test_settings_without_a_line_of_their_own_come_from_a_file_that_is_nobody_elses() -> None:
    for service in ours():
        assert service.fields["env_file"] == [{"path": "./deploy/ondol.env", "required": False}], service.name
    assert "/deploy/ondol.env" in (ROOT / ".gitignore").read_text().splitlines()
    page = (ROOT / "docs" / "deploy.md").read_text()
    sizes = set(re.findall(r"`(ONDOL_[A-Z_]+)`", page[page.index("## Sizes") :])) - {"ONDOL_TRAIN_GRACE_S"}
    assert sizes <= {row.name for row in describe_settings()}
    assert not sizes & {name for service in ours() for name in service.environment}


def test_profiles_start_one_kind_of_device_and_everything_else_always() -> None:
    by_profile: dict[str, set[str]] = {}
    for service in load_services().values():
        for profile in service.profiles or ["always"]:
            by_profile.setdefault(profile, set()).add(service.name)
    assert by_profile == {
        "always": {"redis", "postgres", "migrate", "api", "reconciler", "intake", "flower"},
        "cpu": {"worker-cpu", "trainer-cpu"},
        "gpu": {"worker-gpu0", "trainer-gpu0"},
        "gpu1": {"worker-gpu1", "trainer-gpu1"},
    }


@pytest.mark.parametrize("number", [0, 1])
def test_a_gpu_is_reserved_for_its_worker_and_trainer_which_share_name_and_folder(number: int) -> None:
    services = load_services({f"ONDOL_GPU{number}": "MIG-1234"})
    pair = [services[f"{role}-gpu{number}"].fields for role in ("worker", "trainer")]
    for fields in pair:
        (device,) = fields["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["MIG-1234"], "capabilities": ["gpu"]}
        assert fields["environment"]["ONDOL_DEVICE"] == "cuda:0"
        assert fields["hostname"] == f"node-gpu{number}"
        assert fields["volumes"] == [f"gpu{number}:/data", "store:/store", "./models:/import:ro"]


def test_everybody_is_locked_in_and_restarted() -> None:
    for service in load_services().values():
        fields = service.fields
        assert fields["read_only"] is True, service.name
        assert fields["cap_drop"] == ["ALL"], service.name
        assert fields["security_opt"] == ["no-new-privileges:true"], service.name
        assert fields["user"] not in ("root", "0", "0:0"), service.name
        assert fields["restart"] == ("no" if service.name == "migrate" else "unless-stopped"), service.name
        assert ("healthcheck" in fields) == (service.name != "migrate"), service.name


def test_ports_are_open_on_loopback_only_and_the_api_wants_keys() -> None:
    services = load_services()
    ports = {name: service.fields["ports"] for name, service in services.items() if "ports" in service.fields}
    assert ports == {"api": ["127.0.0.1:8400:8400"], "flower": ["127.0.0.1:5555:5555"]}
    assert services["api"].environment["ONDOL_AUTH"] == "keys"


def test_grace_periods_fit_what_a_process_needs_to_hand_its_work_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ours():
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        if service.name.startswith("worker"):
            assert load_settings(WorkerSettings).grace_s + 10 <= service.stop_grace_s
        if service.name.startswith("trainer"):
            # 15 s: what the node has after its grace, before it ends the hard way.
            assert load_settings(TrainerSettings).train_grace_s + 15 + 10 <= service.stop_grace_s


def test_secrets_come_by_file_and_stand_nowhere_else() -> None:
    compose = load_compose()
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    for service in load_services().values():
        assert set(service.fields.get("secrets", [])) <= compose["secrets"].keys()
        for name, value in service.environment.items():
            assert not name.endswith(("_PASSWORD", "_KEY", "_SECRET")), (service.name, name)
            assert not re.search(r"//[^/@]*:[^/@]+@", value), (service.name, name)
    settings = {row.name.lower() for row in describe_settings()}
    assert compose["secrets"].keys() <= settings


def test_the_images_are_built_from_stages_that_exist() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for service in ours():
        build = service.fields["build"]
        target = "worker" if service.name.startswith(("worker", "trainer")) else "server"
        assert build["target"] == target, service.name
        assert target in stages
        assert service.fields["image"] == f"ondol-{target}:0.1.0"


def test_volumes_are_declared_and_the_store_is_shared() -> None:
    compose = load_compose()
    used = {text.split(":")[0] for one in compose["services"].values() for text in one.get("volumes", [])}
    used -= {"./models"}  # a folder of the host
    assert used == compose["volumes"].keys()
    for service in ours():
        if service.name.startswith(("api", "worker", "trainer")):
            assert "store:/store" in service.fields["volumes"], service.name


def test_what_the_pages_import_lies_in_a_folder_that_every_worker_sees() -> None:
    paths = re.findall(r"ondol models import (/\S+)", (ROOT / "docs" / "deploy.md").read_text())
    assert paths
    workers = [service for service in ours() if service.name.startswith("worker-")]
    assert len(workers) == 3
    for service in workers:
        [mounted] = [text for text in service.fields["volumes"] if text.startswith("./models:")]
        assert mounted == "./models:/import:ro", service.name
        assert all(path.startswith("/import/") for path in paths)
    assert load_services({"ONDOL_IMPORT_DIR": "/srv/m"})["worker-cpu"].fields["volumes"][-1] == "/srv/m:/import:ro"
    assert "/models/" in (ROOT / ".gitignore").read_text().splitlines()


def test_secrets_are_made_once_at_random_and_closed_to_others(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "make-secrets.sh"
    folder = tmp_path / "secrets"

    def made() -> dict[str, str]:
        subprocess.run([str(script), str(folder)], check=True, capture_output=True)
        return {path.name: path.read_text() for path in folder.iterdir()}

    first = made()
    assert made() == first
    assert len(set(first.values())) == 3
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in first.values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {Path(secret["file"]).name for secret in load_compose()["secrets"].values()}
    assert files == first.keys()
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_s3_file_changes_only_what_it_must() -> None:
    added = yaml.safe_load((ROOT / "deploy" / "compose.s3.yml").read_text())
    base = load_services()
    assert added["services"].keys() == {s.name for s in ours() if "store:/store" in s.fields.get("volumes", [])}
    for name, fields in added["services"].items():
        known = {row.name for row in describe_settings()} | {"AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL"}
        assert fields["environment"].keys() <= known
        assert set(base[name].fields["secrets"]) <= set(fields["secrets"])
