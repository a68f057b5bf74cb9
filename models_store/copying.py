"""Copying with the digest taken on the way: no file is ever held in memory as a whole."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK_BYTES = 1024 * 1024
CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})
"""Why a filesystem gives a file no second name: another disk, a kind of filesystem, too many names, a guarded file."""


class Readable(Protocol):
    """What `copy_hashed` reads from: an open binary file of any filesystem."""

    def read(self, num_bytes: int, /) -> bytes:
        """At most `num_bytes` bytes; empty at the end."""
        ...


class Writable(Protocol):
    """What `copy_hashed` writes to."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""
        ...


def copy_hashed(source: Readable, target: Writable | None) -> str:
    """Copy `source` to `target` (None: only read it) and give the SHA-256 in hex of what was read."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 in hex of a local file."""
    with path.open("rb") as file:
        return copy_hashed(file, None)


@contextmanager
def durable_file(path: Path, staging: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole and on disk, or not at all; written at `staging` on the same filesystem."""
    try:
        with staging.open("xb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link_durable(source: Path, target: Path) -> None:
    """Give a finished file a second name, read-only and on disk; OSError (`CANNOT_LINK`) where there can be none."""
    staging = target.with_name(f"{target.name}.tmp")
    os.link(source, staging)
    try:
        descriptor = os.open(staging, os.O_RDONLY)
        try:
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)  # still there, too, where `target` was another name of the same file
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it that are missing; their names survive a power cut."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(new):
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names created in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
