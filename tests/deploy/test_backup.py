"""The page's backup, with the programs that it runs in containers run here: what it saves can be had back."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import sqlalchemy as sa

from models_store.store import ModelStore
from ondol.control.administration import create_key, list_keys, upgrade_database
from tests.deploy.docker_calls import DockerCall, calls_of
from tests.deploy.documents import DEPLOY, find_block, run_shell
from tests.servers import PostgresServer

pytestmark = pytest.mark.integration

RUN_LIMIT_S = 60


@pytest.fixture
def programs(postgresql_url: str) -> Path:
    """The folder of the server's own pg_dump and pg_restore, which have to be of its release."""
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        folder = connection.execute(sa.text("SELECT setting FROM pg_config() WHERE name = 'BINDIR'")).scalar_one()
    engine.dispose()
    if not (Path(folder) / "pg_dump").exists():
        pytest.skip("the tests' PostgreSQL runs elsewhere, and its pg_dump is not here")
    return Path(folder)


@pytest.fixture
def calls(checkout: Path) -> dict[str, DockerCall]:
    """What the page runs in containers, by program."""
    made = calls_of(find_block(DEPLOY, "Backup", 1).text, folder=checkout, environment={})
    return {call.command[0]: call for call in made}


def test_the_database_comes_back_from_the_dump(
    calls: dict[str, DockerCall], programs: Path, tmp_path: Path, postgresql_url: str, postgres_server: PostgresServer
) -> None:
    upgrade_database(postgresql_url)
    create_key(postgresql_url, project="default", name="kept", is_admin=True)
    program, *arguments = calls["pg_dump"].command
    assert arguments[:2] == ["-U", "ondol"] and arguments[-1] == "ondol"
    user = sa.make_url(postgresql_url).username or ""
    dump = run(str(programs / program), "-U", user, *arguments[2:-1], libpq_url(postgresql_url))
    (tmp_path / "ondol.dump").write_bytes(dump)
    restored_url = postgres_server.create_database()
    try:
        run(str(programs / "pg_restore"), "-d", libpq_url(restored_url), str(tmp_path / "ondol.dump"))
        assert [key.name for key in list_keys(restored_url)] == ["kept"]
    finally:
        postgres_server.drop_database(restored_url)


def test_the_store_comes_back_from_the_archive(
    calls: dict[str, DockerCall], tmp_path: Path, checkout: Path, tiny_version: Path
) -> None:
    store = tmp_path / "store"
    manifest = ModelStore(f"file://{store}").publish_folder(tiny_version, "tiny")
    volume, target = (mount.split(":") for mount in calls["tar"].mounts)
    assert Path(target[0]) == checkout
    folders = {volume[1]: str(store), target[1]: str(checkout)}
    run(*(outside(argument, folders) for argument in calls["tar"].command))
    with tarfile.open(checkout / "store.tar") as archive:
        archive.extractall(tmp_path / "again", filter="data")
    again = ModelStore(f"file://{tmp_path / 'again'}")
    assert again.read_manifest(manifest.digest) == manifest


def test_database_and_store_come_back_by_the_commands_of_the_page(tmp_path: Path, tiny_version: Path) -> None:
    data = tmp_path / "ondol-data"
    data.mkdir()
    url = f"sqlite:///{data / 'ondol.db'}"
    upgrade_database(url)
    create_key(url, project="default", name="kept", is_admin=True)
    manifest = ModelStore(f"file://{data / 'store'}").publish_folder(tiny_version, "tiny")
    run_shell(find_block(DEPLOY, "Backup", 2).text, folder=tmp_path, environment={})
    shutil.rmtree(data)
    run_shell(find_block(DEPLOY, "Backup", 3).text, folder=tmp_path, environment={})
    assert [key.name for key in list_keys(url)] == ["kept"]
    assert ModelStore(f"file://{data / 'store'}").read_manifest(manifest.digest) == manifest


def test_the_database_moves_by_the_command_of_the_page(tmp_path: Path, postgresql_url: str) -> None:
    (tmp_path / "ondol-data").mkdir()
    url = f"sqlite:///{tmp_path / 'ondol-data' / 'ondol.db'}"
    upgrade_database(url)
    create_key(url, project="default", name="kept", is_admin=True)
    command, named = find_block(DEPLOY, "Moving to another database", 1).text.rsplit(maxsplit=1)
    assert named.startswith("postgresql+psycopg://")
    run_shell(f"{command} {shlex.quote(postgresql_url)}", folder=tmp_path, environment={})
    assert [key.name for key in list_keys(postgresql_url)] == ["kept"]


def outside(argument: str, folders: dict[str, str]) -> str:
    """An argument with a container's folder replaced by the one that is mounted there."""
    for inside, folder in folders.items():
        if argument == inside or argument.startswith(f"{inside}/"):
            return folder + argument.removeprefix(inside)
    return argument


def libpq_url(url: str) -> str:
    """The URL as PostgreSQL's own programs take it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def run(*command: str) -> bytes:
    """What a program writes; AssertionError with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, timeout=RUN_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout
