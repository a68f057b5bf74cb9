"""The model store: content-addressed blobs and one manifest a version, on any fsspec filesystem.

Layout under the root: `blobs/sha256/ab/<digest>` and `manifests/<digest>.json`. The manifest is written last, so a
version exists whole or not at all. Equal files are stored once. Objects may be shared by threads; every method blocks.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models_store.allowed_files import list_folder
from models_store.copying import copy_hashed, durable_file, hash_file, make_folder
from models_store.failures import translated
from models_store.manifest import Manifest, ManifestFile, check_digest, make_manifest, parse_manifest
from ondol.contract.errors import ModelStoreError

# One put is atomic there, and a rename would be a copy.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"})
REUSE_WITHIN = timedelta(days=1)
"""On object stores, older blobs are uploaded again when a new version wants them: they cannot be touched."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob: digest, size, and when it was written or last wanted by a publish (UTC)."""

    digest: str
    size_bytes: int
    modified_at: datetime


class ModelStore:
    """Published files at `url` (a path, `file://…`, `s3://…`); ModelStoreError if no such filesystem is installed.

    Every method raises StoreUnavailable (retryable; code `storage_full` when there is no room) if the filesystem fails.
    """

    def __init__(self, url: str) -> None:
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except ImportError as exc:
            raise ModelStoreError(f"the store {url} needs one more package: {exc}", code="bad_store_url") from exc
        except ValueError as exc:
            raise ModelStoreError(f"{url!r} is not the URL of a store: {exc}", code="bad_store_url") from exc
        self.url = url
        self._fs = filesystem
        self._root = root.rstrip("/")
        self.is_local = isinstance(filesystem, LocalFileSystem)

    def publish_folder(self, folder: Path, ref: str, *, intend: Callable[[str], None] | None = None) -> Manifest:
        """Store every file under `folder` and then its manifest; publishing the same files again changes nothing.

        `intend` is told the manifest's digest before anything is written: a manifest that the database never heard of
        stops the collection. `ref` names the version in errors. ModelRefused for a file that may not be stored (nothing
        is written then).
        """
        files = [
            ManifestFile(path, (folder / path).stat().st_size, hash_file(folder / path)) for path in list_folder(folder)
        ]
        manifest, data = make_manifest(files)
        if intend is not None:
            intend(manifest.digest)
        for file in files:
            self._put_blob(folder / file.path, file, ref)
        with translated(f"writing the manifest of {ref}"):
            self._write_bytes(self._manifest_path(manifest.digest), data)
        return manifest

    def read_manifest(self, digest: str) -> Manifest:
        """The manifest `digest`; ModelStoreError (`file_missing`) if no such version was published."""
        path = self._manifest_path(check_digest(digest))
        with translated(f"reading manifest {digest}"):
            data = self._fs.cat_file(path)
        return parse_manifest(data, digest)

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[IO[bytes]]:
        """The blob's bytes, unverified: whoever reads them compares the digest."""
        with (
            translated(f"reading blob {digest}"),
            self._fs.open(self._blob_path(check_digest(digest)), "rb") as file,
        ):
            yield cast(IO[bytes], file)

    def local_blob(self, digest: str) -> Path | None:
        """The blob's own path where the store is a local folder, else None. Never write to it."""
        return Path(self._blob_path(check_digest(digest))) if self.is_local else None

    def list_manifests(self) -> list[str]:
        """Digests of all published manifests."""
        with translated("listing manifests"):
            names = [name for name, _ in self._entries(f"{self._root}/manifests")]
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def list_blobs(self) -> list[BlobInfo]:
        """All blobs, whether referenced or not."""
        with translated("listing blobs"):
            entries = list(self._entries(f"{self._root}/blobs"))
            return [
                BlobInfo(name, int(info["size"]), self._modified_at(info["name"]))
                for name, info in entries
                if len(name) == 64
            ]

    def delete_manifest(self, digest: str) -> None:
        """Make the version disappear; its blobs stay until the next collection. Missing is fine."""
        with translated(f"deleting manifest {digest}"):
            self._delete(self._manifest_path(check_digest(digest)))

    def stale_manifests(self, digests: Collection[str], older_than: timedelta) -> list[str]:
        """Those of the manifests that nobody wrote for that long; publishing the same files writes one again."""
        return [digest for digest in digests if self._is_stale(self._manifest_path(check_digest(digest)), older_than)]

    def delete_unreferenced_blobs(
        self, older_than: timedelta, *, without: Collection[str] = (), is_dry: bool = False
    ) -> list[BlobInfo]:
        """Delete blobs that no manifest names and that nobody wrote or wanted for that long; gives what was deleted.

        `older_than` must exceed the longest publish, and on object stores also REUSE_WITHIN: younger blobs may belong
        to a version whose manifest is yet to come. Manifests `without` count as gone; `is_dry` deletes nothing.
        """
        blobs = self.list_blobs()
        kept = set(self.list_manifests()).difference(without)
        referenced = {file.sha256 for digest in kept for file in self.read_manifest(digest).files}
        deleted = []
        for blob in blobs:
            path = self._blob_path(blob.digest)
            if blob.digest not in referenced and self._is_stale(path, older_than):
                if not is_dry:
                    with translated(f"deleting blob {blob.digest}"):
                        self._delete(path)
                deleted.append(blob)
        return deleted

    def is_stale_folder(self, path: str, older_than: timedelta) -> bool:
        """Whether nobody wrote anything in the folder `path`, relative to the root, for that long."""
        whole = f"{self._root}/{path}"
        with translated(f"listing {path}"):
            self._fs.invalidate_cache()
            files = self._fs.find(whole) or [whole]
        return all(self._is_stale(file, older_than) for file in files)

    def clock_skew(self) -> timedelta:
        """How far this host's clock is ahead of the one by which the store dates its files; writes a small file."""
        path = f"{self._root}/.clock-{uuid.uuid4().hex}"
        with translated(f"reading the clock of the store {self.url}"):
            self._write_bytes(path, b"ondol")
            try:
                return datetime.now(UTC) - self._modified_at(path)
            finally:
                self._fs.rm_file(path)

    def _put_blob(self, source: Path, file: ManifestFile, ref: str) -> None:
        target = self._blob_path(file.sha256)
        with translated(f"storing {file.path} of {ref}"):
            if self._keep_existing(target, file):
                return
            actual = self._put_local(source, target) if self.is_local else self._put_remote(source, target)
        if actual != file.sha256:
            self._delete(target)
            raise ModelStoreError(f"{file.path} of {ref} changed while it was published; publish it again")

    def _put_local(self, source: Path, target: str) -> str:
        path = Path(target)
        make_folder(path.parent)
        with source.open("rb") as reader, durable_file(path, _staging_name(path)) as writer:
            return copy_hashed(reader, writer)

    def _put_remote(self, source: Path, target: str) -> str:
        self._fs.makedirs(self._fs._parent(target), exist_ok=True)
        if is_object_store(self._fs):
            self._fs.put_file(str(source), target)
        else:
            staging = f"{target}.{uuid.uuid4().hex}"
            self._fs.put_file(str(source), staging)
            self._fs.mv(staging, target)
        return hash_file(source)

    def _keep_existing(self, target: str, file: ManifestFile) -> bool:
        """Whether the stored blob can serve the new version; refreshes its age, so that no collection takes it."""
        self._fs.invalidate_cache(self._fs._parent(target))
        if not self._fs.exists(target) or self._fs.size(target) != file.size_bytes:
            return False
        if not self.is_local:
            return datetime.now(UTC) - self._modified_at(target) < REUSE_WITHIN
        os.utime(target)
        # Publishing the same model again is how a damaged store is repaired.
        return hash_file(Path(target)) == file.sha256

    def _write_bytes(self, path: str, data: bytes) -> None:
        if self.is_local:
            make_folder(Path(path).parent)
            with durable_file(Path(path), _staging_name(Path(path))) as file:
                file.write(data)
            return
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)
        staging = path if is_object_store(self._fs) else f"{path}.{uuid.uuid4().hex}"
        self._fs.pipe_file(staging, data)
        if staging != path:
            self._fs.mv(staging, path)

    def _entries(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        self._fs.invalidate_cache()
        if self._fs.exists(folder):
            for path, info in self._fs.find(folder, detail=True).items():
                yield path.rsplit("/", 1)[-1], info

    def _is_stale(self, path: str, older_than: timedelta) -> bool:
        with translated(f"reading the age of {path.rpartition('/')[2]}"):
            return datetime.now(UTC) - self._modified_at(path) >= older_than

    def _modified_at(self, path: str) -> datetime:
        # Object stores' drivers answer from their last listing, which does not know what others wrote since.
        self._fs.invalidate_cache(self._fs._parent(path))
        modified: datetime = self._fs.modified(path)
        return modified if modified.tzinfo else modified.replace(tzinfo=UTC)

    def _delete(self, path: str) -> None:
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def _blob_path(self, digest: str) -> str:
        return f"{self._root}/blobs/sha256/{digest[:2]}/{digest}"

    def _manifest_path(self, digest: str) -> str:
        return f"{self._root}/manifests/{digest}.json"


def is_object_store(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether an object appears there whole when its upload ends, and a rename would be a copy."""
    protocol = filesystem.protocol
    return not _OBJECT_STORES.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)


def _staging_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")
