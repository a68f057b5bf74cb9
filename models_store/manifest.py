"""Manifests: the list of a version's files, whose own digest names the version's contents for ever."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from models_store.allowed_files import check_path
from ondol.contract.errors import ChecksumMismatch, ModelRefused, ModelStoreError

FORMAT = 1
DIGEST_PATTERN = r"[0-9a-f]{64}"
_DIGEST = re.compile(DIGEST_PATTERN)


@checked_dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of a version: relative path, size and SHA-256 in hex."""

    path: str
    size_bytes: Annotated[int, Field(ge=0, strict=True)]
    sha256: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version's files, sorted by path; `digest` is the SHA-256 of the canonical JSON, `size_bytes` their sum."""

    digest: str
    files: tuple[ManifestFile, ...]
    size_bytes: int


_FILES: TypeAdapter[list[ManifestFile]] = TypeAdapter(list[ManifestFile])


def make_manifest(files: Iterable[ManifestFile]) -> tuple[Manifest, bytes]:
    """The manifest of `files`, and its canonical bytes."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    listed = [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in ordered]
    data = json.dumps({"files": listed, "format": FORMAT}, sort_keys=True, separators=(",", ":")).encode()
    return Manifest(hashlib.sha256(data).hexdigest(), ordered, sum(f.size_bytes for f in ordered)), data


def parse_manifest(data: bytes, digest: str) -> Manifest:
    """The manifest in `data`; ChecksumMismatch if it is not the one named `digest`, ModelStoreError if unreadable.

    Paths are checked again: a manifest may not lead out of the folder that it is laid out in.
    """
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise ChecksumMismatch(ref=digest, file="manifest", expected=digest, actual=actual)
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ModelStoreError(f"manifest {digest} has another format than {FORMAT}; a newer Ondol wrote it")
        files = _FILES.validate_python(document.get("files"))
        for file in files:
            check_path(file.path)
    except (ValidationError, ValueError, RecursionError, ModelRefused) as exc:
        raise ModelStoreError(f"manifest {digest} is not readable: {exc}") from exc
    return Manifest(digest, tuple(files), sum(file.size_bytes for file in files))


def check_digest(digest: str) -> str:
    """`digest` if it is 64 lower-case hex digits, else ModelStoreError: it becomes part of a path."""
    if _DIGEST.fullmatch(digest) is None:
        raise ModelStoreError(f"{digest[:80]!r} is not a SHA-256 digest", code="file_missing")
    return digest
