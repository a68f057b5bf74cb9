"""`client.files`, blocking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ondol.client import file_flows
from ondol.client.file_flows import DEFAULT_PURPOSE, FileInfo, parse_file
from ondol.client.file_transfer import FileUpload, HashedSink, appearing_file

if TYPE_CHECKING:
    from ondol.client.sync_client import Ondol


class Files:
    """Files of this project."""

    def __init__(self, client: Ondol) -> None:
        self._client = client

    def put(
        self,
        path: str | Path,
        purpose: str = DEFAULT_PURPOSE,
        *,
        filename: str | None = None,
        expires_after_s: int | None = None,
    ) -> FileInfo:
        """The stored file, sent in pieces and compared by SHA-256; RequestRefused if it is too large or ill-named.

        Never tried again once a connection stood: ConnectionFailed then leaves open whether the server has it.
        """
        upload = FileUpload(path, purpose, filename=filename, expires_after_s=expires_after_s)
        return self._client.run(file_flows.put_file(upload, self._client.policy))

    def list(self, *, purpose: str | None = None, limit: int | None = None) -> Iterator[FileInfo]:
        """Files, newest first, fetched page by page; `limit` in all."""
        left, after = limit, None
        while left is None or left > 0:
            flow = file_flows.list_files(
                self._client.policy, purpose=purpose, after=after, limit=file_flows.page_limit(left)
            )
            page = self._client.run(flow)
            yield from map(parse_file, page.data)
            if not page.has_more or not page.data:
                return
            after = page.data[-1]["id"]
            left = None if left is None else left - len(page.data)

    def get(self, file_id: str) -> FileInfo:
        """What the server says about a file; NoSuchThing if this project has none with that id, or it has expired."""
        return self._client.run(file_flows.get_file(file_id, self._client.policy))

    def content(self, file_id: str) -> bytes:
        """The whole content in memory; `download` and `save` need not hold it."""
        return self._client.run(file_flows.get_content(file_id, self._client.policy))

    def download(self, file_id: str, path: str | Path) -> FileInfo:
        """Bring the content to the local `path`, which appears whole and verified or not at all."""
        with appearing_file(path) as sink:
            return self._client.run(file_flows.save_content(file_id, sink, self._client.policy))

    def save(self, file_id: str, sink: HashedSink) -> FileInfo:
        """Bring the content to an open file; BadAnswer, when all of it came, if it is not what was uploaded."""
        return self._client.run(file_flows.save_content(file_id, sink, self._client.policy))

    def delete(self, file_id: str) -> None:
        """Remove the file with its content; StateConflict while a fine-tune that has not ended names it."""
        self._client.run(file_flows.delete_file(file_id, self._client.policy))
