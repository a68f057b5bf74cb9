"""`client.files` for asyncio; each method does what its twin in `sync_files` does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from ondol.client import file_flows
from ondol.client.file_flows import DEFAULT_PURPOSE, FileInfo, parse_file
from ondol.client.file_transfer import FileUpload, HashedSink, appearing_file

if TYPE_CHECKING:
    from ondol.client.async_client import AsyncOndol


class AsyncFiles:
    """Files of this project."""

    def __init__(self, client: AsyncOndol) -> None:
        self._client = client

    async def put(
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
        return await self._client.run(file_flows.put_file(upload, self._client.policy))

    async def list(self, *, purpose: str | None = None, limit: int | None = None) -> AsyncIterator[FileInfo]:
        """Files, newest first, fetched page by page; `limit` in all."""
        left, after = limit, None
        while left is None or left > 0:
            flow = file_flows.list_files(
                self._client.policy, purpose=purpose, after=after, limit=file_flows.page_limit(left)
            )
            page = await self._client.run(flow)
            for raw in page.data:
                yield parse_file(raw)
            if not page.has_more or not page.data:
                return
            after = page.data[-1]["id"]
            left = None if left is None else left - len(page.data)

    async def get(self, file_id: str) -> FileInfo:
        """What the server says about a file; NoSuchThing if this project has none with that id, or it has expired."""
        return await self._client.run(file_flows.get_file(file_id, self._client.policy))

    async def content(self, file_id: str) -> bytes:
        """The whole content in memory; `download` and `save` need not hold it."""
        return await self._client.run(file_flows.get_content(file_id, self._client.policy))

    async def download(self, file_id: str, path: str | Path) -> FileInfo:
        """Bring the content to the local `path`, which appears whole and verified or not at all."""
        with appearing_file(path) as sink:
            return await self._client.run(file_flows.save_content(file_id, sink, self._client.policy))

    async def save(self, file_id: str, sink: HashedSink) -> FileInfo:
        """Bring the content to an open file; BadAnswer, when all of it came, if it is not what was uploaded."""
        return await self._client.run(file_flows.save_content(file_id, sink, self._client.policy))

    async def delete(self, file_id: str) -> None:
        """Remove the file with its content; StateConflict while a fine-tune that has not ended names it."""
        await self._client.run(file_flows.delete_file(file_id, self._client.policy))
