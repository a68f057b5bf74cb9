"""Who may do what: keys, administrators, and an api without keys on loopback alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http.api_process import MODEL, ROOT, Member, job_body
from tests.http.conftest import StartApi
from tests.http.test_bad_input import assert_refused
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

KEYED = ("/v1/jobs", "/v1/models", "/v1/workers", "/v1/jobs/job_00000000000000000000000000")
IMPORT = {"kind": "import", "input": {"path": "/somewhere"}, "options": {"name": "new"}}


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ondol_wrong", "Basic abc", "Bearer " + "x" * 600])
@pytest.mark.parametrize("path", KEYED)
def test_without_a_valid_key_nothing_is_told(member: Member, path: str, authorization: str) -> None:
    answer = member.http.get(path, headers={"authorization": authorization})
    assert_refused(answer, 401, None)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_stops_working_within_seconds(member: Member) -> None:
    assert member.http.get("/v1/jobs").status_code == 200
    [key] = [
        key for key in member.api.database.read(lambda uow: uow.keys.list_all()) if key.project_id == member.project_id
    ]
    member.api.database.write(lambda uow: uow.keys.revoke(key.id))
    wait_until(lambda: member.http.get("/v1/jobs").status_code == 401, within_s=10, what="the key to be refused")


def test_importing_from_a_path_needs_an_administrator(member: Member) -> None:
    assert_refused(member.http.post("/v1/jobs", json=IMPORT), 403, None)
    admin = member.api.member(is_admin=True)
    job = admin.http.post("/v1/jobs", json=IMPORT)
    assert (job.status_code, job.json()["kind"], job.json()["model"]) == (202, "import", None)
    admin.close()


def test_without_keys_everybody_on_this_host_is_the_default_project(start_api: StartApi, sqlite_url: str) -> None:
    api = start_api(sqlite_url, auth="off")
    nobody = Member(api, api.database.write(lambda uow: uow.keys.ensure_project()), "nothing")
    del nobody.http.headers["authorization"]
    api.publish(nobody.project_id)
    assert nobody.http.post("/v1/jobs", json=job_body()).status_code == 202
    assert nobody.http.post("/v1/jobs", json=IMPORT).status_code == 202
    assert nobody.http.get(f"/v1/models/{MODEL}").json()["owned_by"] == "default"
    nobody.close()


FOREIGN = {
    "a name that leads here": {"host": "evil.example"},
    "a name with a port": {"host": "evil.example:8000"},
    "a name that looks like ours": {"host": "localhost.evil.example"},
    "an address that is not this machine's": {"host": "10.0.0.1"},
    "no host at all": {"host": ""},
    "another site": {"origin": "https://evil.example"},
    "a page without a site": {"origin": "null"},
    "a site whose name begins like ours": {"origin": "http://localhost.evil.example:8000"},
    "a site with our name as a user": {"origin": "http://localhost@evil.example"},
}
OURS: tuple[dict[str, str], ...] = (
    {},
    {"host": "localhost"},
    {"host": "[::1]:80"},
    {"host": "app.localhost:1"},
    {"origin": "http://127.0.0.1:3000"},
)


def test_without_keys_no_page_of_another_site_is_answered(start_api: StartApi, sqlite_url: str) -> None:
    api = start_api(sqlite_url, auth="off")
    nobody = Member(api, api.database.write(lambda uow: uow.keys.ensure_project()), "nothing")
    api.publish(nobody.project_id)
    body = json.dumps(job_body()).encode()
    for what, headers in FOREIGN.items():
        assert_refused(nobody.http.get("/v1/jobs", headers=headers), 403, None)
        # As a page of another site can send it: no header of its own, a body of bytes.
        assert_refused(nobody.http.post("/v1/jobs", content=body, headers=headers), 403, None)
        assert_refused(nobody.http.post("/v1/webhooks/secret/rotate", headers=headers), 403, None)
        form = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}
        assert_refused(nobody.http.post("/v1/files", headers=headers, **form), 403, None)  # type: ignore[arg-type]  # of httpx
        assert nobody.count_rows() == 0, what
    for ours in OURS:
        headers = {"host": f"localhost:{api.port}", **ours}
        assert nobody.http.get("/v1/jobs", headers=headers).status_code == 200, headers
        assert nobody.http.post("/v1/jobs", content=body, headers=headers).status_code == 202, headers
    nobody.close()


def test_with_keys_the_name_of_the_server_is_anything(member: Member) -> None:
    headers = {"host": "ondol.example", "origin": "https://app.example"}
    assert member.http.get("/v1/jobs", headers=headers).status_code == 200


def test_without_keys_another_address_than_loopback_is_refused(tmp_path: Path) -> None:
    env = os.environ | {"ONDOL_AUTH": "off", "ONDOL_HOST": "0.0.0.0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "api.main"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "loopback" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_model_says_what_it_is(member: Member) -> None:
    member.api.publish(member.project_id)
    model = member.http.get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"], model["version"], model["task"]) == ("tiny", "model", "tiny:1", "embedding")
    assert (model["dimensions"], model["max_length"], model["aliases"]) == (8, 16, {"default": "tiny:1"})
    assert [version["id"] for version in model["versions"]] == ["tiny:1", "tiny:2"]
    second = member.http.get("/v1/models/tiny:2").json()
    assert (second["id"], second["version"]) == ("tiny:2", "tiny:2")
    assert member.http.get("/v1/models/tiny@default").json()["version"] == "tiny:1"
    assert_refused(member.http.get("/v1/models/nothing"), 404, "model")
