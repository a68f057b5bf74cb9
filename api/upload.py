"""Receiving an uploaded file: from the socket to the store in pieces, refused while it streams when it is too large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from api.multipart_form import MultipartForm
from api.threads import in_store
from models_store.file_blobs import FileWriter
from ondol.contract.errors import InvalidPayload, ModelStoreError, OndolError, PayloadTooLarge
from ondol.contract.files import check_expiry, check_filename, check_purpose, check_suffix

FILE_FIELD = "file"
PIECE_BYTES = 1024 * 1024
"""What is gathered before it goes to the store; with what the server has read ahead, all that one upload holds."""
FORM_BYTES = 256 * 1024
"""Room for what a form has beside the file."""
IDLE_LIMIT_S = 60.0
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_LIMIT_S = 10.0

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class UploadedFile:
    """What the form said; whole when `receive_file` has returned."""

    filename: str | None = None
    purpose: str | None = None
    anchor: str | None = None
    expires_after_s: int | None = None
    size_bytes: int = 0
    sha256: str = ""

    def take_filename(self, value: str) -> None:
        """The file's name; InvalidPayload if it will not do."""
        self.filename = check_filename(value)
        self._check_suffix()

    def take_field(self, name: str, value: str) -> None:
        """A field of the form; unknown ones are ignored, InvalidPayload for a wrong one."""
        if name == "purpose":
            self.purpose = check_purpose(value)
            self._check_suffix()
        elif name == _SECONDS:
            self.expires_after_s = check_expiry(value)
        elif name == _ANCHOR:
            if value != "created_at":
                raise InvalidPayload(f"{_ANCHOR} is created_at, not {value[:40]!r}", param=_ANCHOR)
            self.anchor = value

    def check_complete(self) -> None:
        """Return if nothing is missing, else InvalidPayload."""
        if self.filename is None:
            raise InvalidPayload("the form has no field file; send the file as `file`", param="file")
        if self.purpose is None:
            raise InvalidPayload("the form has no field purpose, such as fine-tune", param="purpose")
        if self.anchor is not None and self.expires_after_s is None:
            raise InvalidPayload(f"{_ANCHOR} goes with {_SECONDS}", param=_SECONDS)

    def _check_suffix(self) -> None:
        if self.filename is not None and self.purpose is not None:
            check_suffix(self.filename, self.purpose)


class RequestBody:
    """A request's body as it arrives. Knows whether all of it has come, which an early refusal must know."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self.has_ended = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body; ClientDisconnect when the client has gone, InvalidPayload when it sends nothing for long."""
        while not self.has_ended:
            try:
                async with asyncio.timeout(IDLE_LIMIT_S):
                    message = await self._receive()
            except TimeoutError as exc:
                raise InvalidPayload(f"no byte came for {IDLE_LIMIT_S:g} s", code="upload_stalled") from exc
            if message["type"] == "http.disconnect":
                self.has_ended = True
                raise ClientDisconnect
            self.has_ended = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def drain(self) -> None:
        """Read and forget what still comes, up to a bound: the answer is lost where a socket closes on unread data."""
        left = DRAIN_BYTES
        with suppress(TimeoutError, ClientDisconnect, InvalidPayload):
            async with asyncio.timeout(DRAIN_LIMIT_S):
                async for piece in self.pieces():
                    left -= len(piece)
                    if left < 0:
                        return


class EarlyRefusal(Response):
    """A refusal sent while the body still comes: the answer first, then a bounded drain, then the end."""

    def __init__(self, error: OndolError, body: RequestBody) -> None:
        plain = error_response(error)
        headers = {name: value for name, value in plain.headers.items() if name != "content-length"}
        super().__init__(plain.body, plain.status_code, headers | {"connection": "close"})
        self._unread = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await self._unread.drain()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refusal(error: OndolError, body: RequestBody) -> Response:
    """The answer to an upload that is refused, whether or not all of it has come."""
    return error_response(error) if body.has_ended else EarlyRefusal(error, body)


async def receive_file(request: Request, body: RequestBody, writer: FileWriter, *, max_bytes: int) -> UploadedFile:
    """The file of the form, whose bytes are in the store when this returns; nothing is left of it when this raises.

    InvalidPayload for a form that is wrong, PayloadTooLarge as soon as it is seen to be; StoreUnavailable, StorageFull.
    """
    uploaded = UploadedFile()
    form = MultipartForm(
        request.headers.get("content-type"),
        file_field=FILE_FIELD,
        on_field=uploaded.take_field,
        on_filename=uploaded.take_filename,
    )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes + FORM_BYTES:
        raise _too_large(max_bytes)
    try:
        await _copy(body, form, writer, max_bytes)
        uploaded.check_complete()
        if form.num_file_bytes == 0:
            raise InvalidPayload(f"the file {uploaded.filename!r} is empty", param=FILE_FIELD)
        await in_store(writer.commit)
    except BaseException:
        await _abort(writer)
        raise
    uploaded.size_bytes, uploaded.sha256 = writer.num_bytes, writer.sha256
    return uploaded


async def _copy(body: RequestBody, form: MultipartForm, writer: FileWriter, max_bytes: int) -> None:
    total = 0
    async for piece in body.pieces():
        form.feed(piece)
        total += len(piece)
        if form.num_file_bytes > max_bytes:
            raise _too_large(max_bytes)
        if total - form.num_file_bytes > FORM_BYTES:
            raise PayloadTooLarge(f"the form has over {FORM_BYTES} bytes beside the file")
        if form.num_pending >= PIECE_BYTES:
            await in_store(writer.write, form.take())
    form.end()
    if form.num_pending:
        await in_store(writer.write, form.take())


async def _abort(writer: FileWriter) -> None:
    try:
        await in_store(writer.abort)
    except ModelStoreError as exc:  # what broke the upload off is told; the part of it waits for the store's clean-up
        log.warning("upload.not_removed", reason=exc.message)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is over {max_bytes} bytes, the largest that this server takes (ONDOL_MAX_FILE_MB)", param=FILE_FIELD
    )
