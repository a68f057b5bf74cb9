"""The checks of `ondol doctor` that need the server's packages: Redis, SQL, its clock, the store."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ondol.cli.checks import existing_folder
from ondol.cli.database_url import sqlite_file
from ondol.cli.findings import Finding, bad, note, ok, without_secret, without_secrets_of
from ondol.contract.errors import OndolError
from ondol.settings import UpSettings

if TYPE_CHECKING:
    from ondol.control.administration import DatabaseFacts
    from ondol.control.letters import DeadLetter
    from ondol.control.troubles import Troubles

ANSWER_LIMIT_S = 5.0
_OLDEST_REDIS = (6, 2)
_OLDEST_POSTGRESQL = 13
_MOST_SKEW_S = 2.0
LEADERLESS_LIMIT_S = 30.0
_MOUNTS = Path("/proc/self/mounts")
_REMOTE_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs"})


def _redis(settings: UpSettings) -> Finding:
    from redis import Redis, RedisError

    try:
        url = settings.resolved_redis_url()
    except OndolError:
        return _embedded_redis()
    where = without_secret(url)
    try:
        with Redis.from_url(url, socket_timeout=ANSWER_LIMIT_S, socket_connect_timeout=ANSWER_LIMIT_S) as redis:
            info: dict[str, Any] = redis.info()
    except (RedisError, OSError, ValueError, TypeError) as error:  # TypeError: an option that redis does not know
        if settings.redis_url:
            return bad(
                "Redis", f"{where}: {without_secrets_of(url, str(error))}", "start it, or correct ONDOL_REDIS_URL"
            )
        return _embedded_redis()
    return judge_redis(where, info)


def judge_redis(where: str, info: dict[str, Any]) -> Finding:
    """What its INFO means for Ondol. `where`: its URL without the password."""
    version, policy = str(info["redis_version"]), str(info["maxmemory_policy"])
    limit, has_aof = int(info.get("maxmemory", 0)), bool(info.get("aof_enabled"))
    found = f"{where} (also the broker and backend of Celery producers), version {version}, {policy}, "
    found += f"memory {_megabytes(int(info.get('used_memory', 0)))}"
    found += f" of {_megabytes(limit)}" if limit else ", no limit"
    found += ", AOF" if has_aof else ", no AOF"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        return bad("Redis", found, "use Redis 6.2 or later, or Valkey")
    if policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: evicted messages are rung again late, producers' own are lost"
        return note("Redis", found, remedy)
    if limit and int(info.get("used_memory", 0)) > 0.9 * limit:
        return note("Redis", found, "raise maxmemory: when it is full, nothing is accepted")
    if not has_aof:
        return note("Redis", found, "set appendonly yes: a restart forgets what Celery producers have just sent")
    return ok("Redis", found)


def _letters(settings: UpSettings) -> Finding:
    from ondol.control import letters

    try:
        return judge_letters(letters.list_letters(settings.resolved_redis_url()))
    except (OndolError, ValueError, TypeError):  # none runs, or the finding about Redis says what is wrong with it
        return ok("letters", "no Redis to ask for dead letters")


def judge_letters(found: Sequence[DeadLetter]) -> Finding:
    """What it means that these messages were put aside, newest first."""
    if not found:
        return ok("letters", "no dead letters")
    causes = ", ".join(f"{num} {cause}" for cause, num in Counter(each.cause for each in found).most_common())
    queues = ", ".join(sorted({each.queue for each in found})[:3])
    told = f"{len(found)} dead letters ({causes}) from {queues}"
    return note("letters", told, "look at them with `ondol dead-letters ls`; put them back, or drop them")


def _embedded_redis() -> Finding:
    from ondol.control.embedded_redis import find_redis_binary

    try:
        binary = find_redis_binary()
    except OndolError as error:
        return bad("Redis", error.message, "put redis-server on PATH, or set ONDOL_REDIS_URL")
    return ok("Redis", f"none runs; `ondol up` starts {binary}")


def _sql(settings: UpSettings) -> Finding:
    from ondol.control import administration

    url = settings.resolved_database_url()
    where = without_secret(url)
    file = sqlite_file(url)
    if file is not None and (filesystem := remote_filesystem(file)) is not None:
        return bad("SQL", f"{where} is on {filesystem}", "put SQLite on a local disk, or use PostgreSQL")
    if file is not None and not file.exists():
        return ok("SQL", f"{where} does not exist yet; `ondol up` makes it")
    try:
        facts = administration.describe_database(url)
    except OndolError as error:
        told = without_secrets_of(url, error.message)
        return bad("SQL", f"{where}: {told}", "start it, or correct ONDOL_DATABASE_URL")
    return judge_database(where, facts)


def judge_database(where: str, facts: DatabaseFacts) -> Finding:
    """What is true of a database, judged. `where`: its URL without the password."""
    found = f"{where}, {facts.server}, schema {facts.revision}"
    if facts.revision is None:
        return note("SQL", f"{where} has no schema", "run `ondol db upgrade`")
    if facts.revision != facts.newest_revision:
        remedy = "run `ondol db upgrade`; if the schema is the newer one, update Ondol"
        return bad("SQL", f"{found}; this Ondol needs {facts.newest_revision}", remedy)
    if facts.journal_mode not in (None, "wal"):
        return bad("SQL", f"{found}, journal mode {facts.journal_mode}", "run `ondol db upgrade`, which sets WAL")
    if facts.major_version is not None and facts.major_version < _OLDEST_POSTGRESQL:
        return bad("SQL", found, f"use PostgreSQL {_OLDEST_POSTGRESQL} or later")
    if abs(facts.clock_ahead_s) > _MOST_SKEW_S:
        ahead = "ahead of" if facts.clock_ahead_s > 0 else "behind"
        found += f"; its clock is {abs(facts.clock_ahead_s):.1f} s {ahead} this host's"
        return note("SQL", found, "synchronise the clocks (NTP): times and deadlines look wrong")
    return ok("SQL", found)


def _repairs(settings: UpSettings) -> Finding:
    troubles = _troubles(settings)
    return (
        note("repairs", "SQL cannot be asked", "see what is said of SQL")
        if troubles is None
        else judge_repairs(troubles)
    )


def _troubles(settings: UpSettings) -> Troubles | None:
    """None where SQL does not answer: the finding about SQL says so."""
    from ondol.control.troubles import Troubles, find_troubles

    url = settings.resolved_database_url()
    file = sqlite_file(url)
    try:
        return Troubles() if file is not None and not file.exists() else find_troubles(url)
    except OndolError:
        return None


def _clocks(settings: UpSettings) -> Finding:
    troubles = _troubles(settings)
    return (
        note("clocks", "SQL cannot be asked", "see what is said of SQL") if troubles is None else judge_clocks(troubles)
    )


def judge_clocks(troubles: Troubles) -> Finding:
    """What the clocks of the workers' hosts mean."""
    if not troubles.skewed_workers:
        return ok("clocks", "no worker's clock is far from the database's")
    named = ", ".join(f"{worker} {_ahead(ahead_s)}" for worker, ahead_s in sorted(troubles.skewed_workers.items()))
    return note("clocks", f"{named} the database's", "synchronise the clocks (NTP): times in their logs look wrong")


def _ahead(ahead_s: float) -> str:
    return f"is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'}"


def judge_repairs(troubles: Troubles) -> Finding:
    """What the watchdogs have found and done, judged."""
    if troubles.leaderless_s > LEADERLESS_LIMIT_S or not troubles.has_led:
        since = f"has led for {troubles.leaderless_s:.0f} s" if troubles.has_led else "has ever led"
        found = f"no reconciler {since}: what is lost is not repaired"
        return bad("repairs", found, "look at the reconciler's log, and start one: `ondol reconciler`")
    if troubles.idle_workers:
        found = f"work waits, and {', '.join(troubles.idle_workers)} takes none"
        return bad(
            "repairs", found, "look at the worker's log for worker.deaf and worker.idle_with_backlog; restart it"
        )
    if troubles.recent_repairs:
        named = ", ".join(f"{kind} ({total} ever)" for kind, total in troubles.recent_repairs.items())
        return note("repairs", f"in the last ten minutes: {named}", "docs/watchdogs.md says what each means")
    return ok("repairs", "none in the last ten minutes")


def remote_filesystem(file: Path) -> str | None:
    """The kind of network filesystem that holds the path; None for a local one, or where that is not known."""
    try:
        mounts = [line.split(" ") for line in _MOUNTS.read_text(encoding="utf-8").splitlines()]
    except OSError:  # no Linux
        return None
    folder = existing_folder(file).resolve()
    holding = [(mount[1], mount[2]) for mount in mounts if folder.is_relative_to(mount[1])]
    kind = max(holding, key=lambda mount: len(mount[0]))[1] if holding else ""
    return kind if kind in _REMOTE_FILESYSTEMS or kind == "fuse.sshfs" else None


def _store(settings: UpSettings) -> Finding:
    import fsspec

    url = settings.resolved_store_url()
    where = without_secret(url)
    remedy = "correct ONDOL_STORE_URL or its permissions, and install the fsspec driver of its scheme"
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        if "file" in filesystem.protocol and not Path(root).exists():
            if not os.access(existing_folder(Path(root)), os.W_OK):
                return bad("store", f"{where} cannot be made", remedy)
            return ok("store", f"{where} does not exist yet; `ondol up` makes it")
        began = time.monotonic()
        _probe(filesystem, f"{root.rstrip('/')}/.check-{uuid.uuid4().hex}")
    except Exception as error:  # noqa: BLE001 - the command's edge: each driver has errors of its own
        told = without_secrets_of(url, str(error)) or type(error).__name__
        return bad("store", f"{where}: {told}", remedy)
    return ok("store", f"{where}: wrote, read and deleted a file in {(time.monotonic() - began) * 1000:.0f} ms")


def _probe(filesystem: Any, path: str) -> None:
    filesystem.pipe_file(path, b"ondol")
    try:
        if filesystem.cat_file(path) != b"ondol":
            raise OSError("what was written is not what is read back")
    finally:
        filesystem.rm_file(path)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


CHECKS: tuple[Callable[[UpSettings], Finding], ...] = (_redis, _letters, _sql, _repairs, _clocks, _store)
