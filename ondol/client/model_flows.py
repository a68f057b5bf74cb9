"""Flows about models: list, look, aliases, files, export, delete, import."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ondol.client.errors import BadAnswer, NoSuchThing, StateConflict
from ondol.client.file_transfer import HashedSink
from ondol.client.flow import Flow, Json, Request, delete, exchange, exchange_json
from ondol.client.records import JobRequest, ModelInfo, parse_model, parse_page
from ondol.client.retry import RetryPolicy
from ondol.contract.errors import InvalidPayload

CARD_FILE = "README.md"
Expected = int | None | Literal["any"]
"""The version number that an alias must point to now; None: there must be no such alias; `any`: whatever it is."""
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class AliasInfo:
    """An alias and the version that it points to now, `name:3`."""

    name: str
    version: str
    updated_at: datetime
    raw: Json


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of an alias: to `version` (None: it was deleted) from `previous` (None: it was new)."""

    alias: str
    version: str | None
    previous: str | None
    created_at: datetime
    reason: str
    raw: Json


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a version: relative path, size and SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of the version `ref` (`name:3`, whatever reference was asked for)."""

    ref: str
    files: tuple[ModelFile, ...]


def list_models(policy: RetryPolicy) -> Flow[list[ModelInfo]]:
    """All models that requests can name."""
    page = parse_page((yield from exchange_json(Request("GET", "/v1/models"), policy)))
    return [parse_model(raw) for raw in page.data]


def get_model(ref: str, policy: RetryPolicy) -> Flow[ModelInfo]:
    """What the server says about one model."""
    return parse_model((yield from exchange_json(Request("GET", _path(ref)), policy)))


def delete_version(ref: str, policy: RetryPolicy) -> Flow[None]:
    """Nothing; the version `name:3` is unknown to new requests. StateConflict while an alias points to it."""
    yield from delete(_path(ref), policy)


def set_alias(
    name: str, alias: str, version: int, policy: RetryPolicy, *, expected: Expected, reason: str
) -> Flow[AliasInfo]:
    """The alias, moved; StateConflict (`alias_moved`) if it did not point to what was expected."""
    body: Json = {"version": version, "reason": reason}
    if expected != "any":
        body["expected"] = expected
    send = Request("PUT", f"{_path(name)}/aliases/{quote(alias, safe='')}", body=body)
    try:
        return _parse_alias((yield from exchange_json(send, policy)))
    except StateConflict as error:
        # A first try that worked moved the alias away from what a second one expects.
        found = (yield from list_aliases(name, policy)) if error.after_lost_answer else []
        for moved in found:
            if (moved.name, moved.version) == (alias, f"{name}:{version}"):
                return moved
        raise


def delete_alias(name: str, alias: str, policy: RetryPolicy, *, expected: int | None, reason: str) -> Flow[None]:
    """Nothing; the alias is gone, its history stays."""
    params: dict[str, str | int | float] = {"reason": reason} if reason else {}
    if expected is not None:
        params["expected"] = expected
    yield from delete(f"{_path(name)}/aliases/{quote(alias, safe='')}", policy, params)


def list_aliases(name: str, policy: RetryPolicy) -> Flow[list[AliasInfo]]:
    """Aliases of a model, by name."""
    page = parse_page((yield from exchange_json(Request("GET", f"{_path(name)}/aliases"), policy)))
    return [_parse_alias(raw) for raw in page.data]


def alias_history(name: str, policy: RetryPolicy, *, alias: str | None, limit: int) -> Flow[list[AliasMove]]:
    """The latest moves of the model's aliases (or of one), newest first."""
    answer = yield from exchange_json(Request("GET", f"{_path(name)}/aliases", params={"limit": limit}), policy)
    try:
        moves = [_parse_move(raw) for raw in answer["history"]]
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not the history of an alias: {str(answer)[:200]}") from exc
    return [move for move in moves if alias is None or move.alias == alias]


def list_files(ref: str, policy: RetryPolicy) -> Flow[ModelFiles]:
    """The files of a version with their digests; BadAnswer if a path leads out of the folder."""
    answer = yield from exchange_json(Request("GET", f"{_path(ref)}/files"), policy)
    try:
        files = [ModelFile(raw["path"], raw["size_bytes"], raw["sha256"]) for raw in answer["data"]]
        found = ModelFiles(str(answer["version"]), tuple(files))
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not a list of files: {str(answer)[:200]}") from exc
    for file in found.files:
        if not all(map(_PATH_PART.fullmatch, file.path.split("/"))):
            raise BadAnswer(f"{file.path[:200]!r} is not a plain relative path; nothing is exported")
    return found


def get_card(ref: str, policy: RetryPolicy) -> Flow[str | None]:
    """The model card, Markdown; None if the version has none."""
    try:
        answer = yield from exchange(Request("GET", f"{_path(ref)}/files/{CARD_FILE}"), policy)
    except NoSuchThing as error:
        if error.param != "path":
            raise
        return None
    return answer.content.decode("utf-8", "replace")


def export_files(ref: str, staging: Path, policy: RetryPolicy) -> Flow[ModelFiles]:
    """Bring all files of the version into the empty folder, each compared with its digest; BadAnswer if one differs."""
    found = yield from list_files(ref, policy)
    for file in found.files:
        target = staging / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as opened:
            sink = HashedSink(opened)
            yield from exchange(Request("GET", f"{_path(found.ref)}/files/{quote(file.path)}", sink=sink), policy)
        if sink.sha256 != file.sha256:
            raise BadAnswer(
                f"{file.path} of {found.ref} came damaged: expected sha256 {file.sha256}, found {sink.sha256};"
                " nothing is exported"
            )
    return found


@contextmanager
def appearing_folder(target: str | Path) -> Iterator[Path]:
    """An empty folder that appears at `target` when the block ends well, and not at all otherwise.

    InvalidPayload if there is something at `target` already (an empty folder apart), or if it cannot be written.
    """
    path = Path(target).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidPayload(f"{path} exists already; name a folder that does not", param="folder")
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            staging.mkdir(parents=True)
            yield staging
            staging.rename(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as exc:
        raise InvalidPayload(f"cannot write {path}: {exc.strerror or exc}", param="folder") from exc


def import_request(path: str | Path, name: str, *, convert_bin: bool = False) -> JobRequest:
    """The job that imports the model folder `path` of the server's machine as a version of `name`."""
    where = str(Path(path).expanduser().absolute())
    return JobRequest("import", input={"path": where}, options={"name": name, "convert_bin": convert_bin})


def _path(ref: str) -> str:
    return f"/v1/models/{quote(ref, safe=':@')}"


def _parse_alias(raw: Json) -> AliasInfo:
    try:
        return AliasInfo(raw["name"], raw["version"], datetime.fromtimestamp(raw["updated_at"], UTC), raw)
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not an alias: {str(raw)[:200]}") from exc


def _parse_move(raw: Json) -> AliasMove:
    at = datetime.fromtimestamp(raw["created_at"], UTC)
    return AliasMove(raw["alias"], raw["version"], raw["previous"], at, raw.get("reason") or "", raw)
