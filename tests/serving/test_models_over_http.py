"""Models over HTTP, the client and the command line: aliases, what a version is made of, export, deletion."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from models_store.store import ModelStore
from ondol import AsyncOndol, ConnectionFailed, NoSuchThing, Ondol, RequestRefused, StateConflict
from ondol.cli.main import run
from ondol.contract.errors import InvalidPayload
from ondol.contract.model_spec import SPEC_FILE
from tests.http.api_process import ApiProcess, Member
from tests.http.shared_api import api_fixture
from tests.serving.versions import tiny_versions

pytestmark = pytest.mark.integration

NAME = "sentiment"
CARD = "# sentiment\n\nTrained on reviews.\n"
LINEAGE = {"base": "tiny:1", "seed": 7, "metrics": {"f1": 0.75}}
NUM_VERSIONS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_version: Path) -> list[Path]:
    made = tiny_versions(tiny_version, tmp_path_factory.mktemp("versions"), num=NUM_VERSIONS)
    for folder in made:
        (folder / "README.md").write_text(CARD)
        spec = json.loads((folder / SPEC_FILE).read_bytes())
        (folder / SPEC_FILE).write_text(json.dumps(spec | {"labels": ["bad", "good"]}))
    return made


api = api_fixture()


@pytest.fixture
def member(api: ApiProcess, folders: list[Path]) -> Iterator[Member]:
    """Somebody whose project has a model of three versions, files and all."""
    made = api.member(with_model=False)
    for folder in folders:
        publish(made, folder)
    yield made
    made.close()


@pytest.fixture
def client(member: Member) -> Iterator[Ondol]:
    with Ondol(member.api.url, member.secret, max_retries=0) as made:
        yield made


def publish(member: Member, folder: Path) -> None:
    manifest = ModelStore(member.api.store_url).publish_folder(folder, NAME)
    member.api.database.write(
        lambda uow: uow.models.publish(
            project_id=member.project_id,
            name=NAME,
            task="text-classification",
            manifest_digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            spec=json.loads((folder / SPEC_FILE).read_bytes()),
            job_id="job_1",
            attempt=1,
            lineage=LINEAGE,
        )
    )


def assert_no_litter(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_an_alias_is_moved_by_compare_and_set_and_shown_with_its_history(client: Ondol) -> None:
    assert client.models.set_alias(NAME, "production", 2, expected=None, reason="first").version == f"{NAME}:2"
    with pytest.raises(StateConflict, match="points to version 2") as refused:
        client.models.set_alias(NAME, "production", 3, expected=1)
    assert (refused.value.status, refused.value.code, refused.value.param) == (409, "alias_moved", "expected")
    client.models.set_alias(NAME, "production", 3, expected=2, reason="better")
    assert {alias.name: alias.version for alias in client.models.aliases(NAME)} == {
        "default": f"{NAME}:1",
        "production": f"{NAME}:3",
    }
    assert client.models.get(f"{NAME}@production").raw["version"] == f"{NAME}:3"
    moves = client.models.alias_history(NAME, "production")
    assert [(move.previous, move.version, move.reason) for move in moves] == [
        (f"{NAME}:2", f"{NAME}:3", "better"),
        (None, f"{NAME}:2", "first"),
    ]
    with pytest.raises(StateConflict):
        client.models.delete_alias(NAME, "production", expected=2)
    client.models.delete_alias(NAME, "production", expected=3)
    assert client.models.alias_history(NAME, "production")[0].version is None
    with pytest.raises(NoSuchThing):
        client.models.get(f"{NAME}@production")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "version"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"version": 1, "expected": 0}, "expected"),
        ({"version": 1, "reason": "x" * 257}, "reason"),
        ({"version": 1, "other": 1}, "other"),
    ],
)
def test_a_wrong_field_of_a_move_is_named(member: Member, body: dict[str, object], param: str) -> None:
    answer = member.http.put(f"/v1/models/{NAME}/aliases/production", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_nobody_moves_or_reads_what_belongs_to_another_project(api: ApiProcess, member: Member) -> None:
    stranger = api.member(with_model=False)
    asked = [
        stranger.http.put(f"/v1/models/{NAME}/aliases/production", json={"version": 1}),
        stranger.http.delete(f"/v1/models/{NAME}/aliases/default"),
        stranger.http.get(f"/v1/models/{NAME}/aliases"),
        stranger.http.get(f"/v1/models/{NAME}:1/files"),
        stranger.http.get(f"/v1/models/{NAME}:1/files/{SPEC_FILE}"),
        stranger.http.delete(f"/v1/models/{NAME}:2"),
    ]
    assert {answer.status_code for answer in asked} == {404}
    assert {httpx.get(str(answer.request.url), trust_env=False).status_code for answer in asked[2:5]} == {401}
    assert member.http.get(f"/v1/models/{NAME}:2").status_code == 200
    stranger.close()


def test_a_version_says_what_it_is_and_where_it_comes_from(client: Ondol) -> None:
    shown = client.models.get(f"{NAME}:2").raw
    assert (shown["labels"], shown["metrics"]) == (["bad", "good"], {"f1": 0.75})
    assert shown["lineage"] == {"base": "tiny:1", "seed": 7}
    assert shown["files_url"] == f"/v1/models/{NAME}:2/files"
    assert client.models.card(f"{NAME}:2") == CARD
    assert [model.id for model in client.models.list()] == [NAME]


def test_an_exported_version_is_a_folder_that_transformers_loads(
    client: Ondol, folders: list[Path], tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    assert client.models.export(f"{NAME}:2", tmp_path / "out") == f"{NAME}:2"
    files = {file.path: file.sha256 for file in client.models.files(f"{NAME}:2")}
    written = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in written.items()} == files
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    vectors = [
        AutoModel.from_pretrained(folder)(**tokenizer("the fire", return_tensors="pt")).last_hidden_state.detach()
        for folder in (tmp_path / "out", folders[1])
    ]
    assert np.array_equal(vectors[0].numpy(), vectors[1].numpy())
    with pytest.raises(InvalidPayload, match="exists"):
        client.models.export(f"{NAME}:2", tmp_path / "out")
    assert_no_litter(tmp_path)


def test_the_asynchronous_client_does_the_same(member: Member, tmp_path: Path) -> None:
    async def work() -> str:
        async with AsyncOndol(member.api.url, member.secret) as client:
            await client.models.set_alias(NAME, "production", 3, expected=None)
            return await client.models.export(f"{NAME}@production", tmp_path / "out")

    assert asyncio.run(work()) == f"{NAME}:3"
    assert (tmp_path / "out" / SPEC_FILE).exists()


def test_a_version_that_is_damaged_in_the_store_is_not_exported(
    member: Member, client: Ondol, folders: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(folders[0], folder)
    (folder / "README.md").write_text("a card that only this version has")
    publish(member, folder)
    digest = hashlib.sha256((folder / "README.md").read_bytes()).hexdigest()
    blob = ModelStore(member.api.store_url).local_blob(digest)
    assert blob is not None
    blob.chmod(0o644)
    blob.write_text("A card that only this version has")
    with pytest.raises(ConnectionFailed):  # the answer ends before its last bytes
        client.models.export(f"{NAME}:4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert_no_litter(tmp_path)


def test_a_version_is_deleted_when_no_alias_points_to_it(client: Ondol) -> None:
    with pytest.raises(StateConflict, match="default") as refused:
        client.models.delete(f"{NAME}:1")
    assert refused.value.code == "version_in_use"
    with pytest.raises(RequestRefused, match="name the version"):
        client.models.delete(NAME)
    client.models.delete(f"{NAME}:2")
    with pytest.raises(NoSuchThing):
        client.models.get(f"{NAME}:2")
    assert [one["id"] for one in client.models.get(NAME).raw["versions"]] == [f"{NAME}:1", f"{NAME}:3"]


def test_the_command_line_moves_shows_exports_and_deletes(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_URL", member.api.url)
    monkeypatch.setenv("ONDOL_API_KEY", member.secret)

    def ondol(*arguments: str) -> tuple[int, str, str]:
        code = run(["models", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    assert ondol("alias", NAME, "production", "2", "--expected", "none", "--reason", "better")[:2] == (
        0,
        f"{NAME}@production points to {NAME}:2\n",
    )
    code, _, err = ondol("alias", NAME, "production", f"{NAME}:3", "--expected", "1")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "points to version 2" in err
    assert ondol("alias", NAME, "production", "other:3")[0] == 2
    shown = json.loads(ondol("alias", NAME, "--json")[1])
    assert [move["alias"] for move in shown["history"]] == ["production", "default"]
    assert "better" in ondol("alias", NAME, "production")[1]
    assert "0.75" in ondol("show", f"{NAME}:2")[1]
    assert ondol("show", f"{NAME}:2", "--card")[1].strip() == CARD.strip()
    assert ondol("export", f"{NAME}@production", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / SPEC_FILE).exists()
    assert ondol("export", f"{NAME}@production", str(tmp_path / "out"))[0] == 2
    assert ondol("rm", f"{NAME}:2")[0] == 1
    assert ondol("alias", NAME, "production", "--delete", "--expected", "2")[0] == 0
    assert ondol("rm", f"{NAME}:2")[0] == 0
