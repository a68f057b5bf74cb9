"""Sending a call to a worker, and to the next one when its session ends first. Calls are pure: twice is harmless."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace

import structlog

from api.worker_choice import LOADING_LIMIT_S, SLOW_WAIT_S, WorkerChooser
from ondol.broker.calls import CallReply, CallRequest, CallSender
from ondol.contract.errors import OndolError
from ondol.contract.ids import new_id
from ondol.sql.records import SessionRecord, VersionRecord

LOOK_S = 0.5

log = structlog.get_logger(__name__)
_BUSY = ("load_s", "tokenize_s", "forward_s")
_copies: set[asyncio.Task[None]] = set()


async def send_call(
    workers: WorkerChooser, sender: CallSender, version: VersionRecord, request: CallRequest
) -> CallReply:
    """The answer of a ready worker. Raises NotReady when none is left, and what `CallSender.call` raises.

    A worker that stops or dies answers no more; its calls go to the next as soon as its session is over.
    """
    gone: set[str] = set()
    while True:
        session, begun_at = await workers.choose(version, gone=gone), time.monotonic()
        reply = await _unless_session_ends(workers, sender, session, request)
        if reply is not None:
            waited_s = time.monotonic() - begun_at - sum(reply.timings.get(stage, 0.0) for stage in _BUSY)
            if waited_s >= SLOW_WAIT_S:
                _begin(_copy_if_hot(workers, sender, version, chosen=session, request=request, waited_s=waited_s))
            return reply
        log.warning("call.sent_again", call_id=request.id, worker=session.worker)
        gone.add(session.id)
        request = replace(request, id=new_id("call"))


def _begin(work: Coroutine[None, None, None]) -> None:
    """Begin what the answer does not wait for."""
    task = asyncio.create_task(work, name="call-copy")
    _copies.add(task)
    task.add_done_callback(_copies.discard)


async def _copy_if_hot(
    workers: WorkerChooser,
    sender: CallSender,
    version: VersionRecord,
    *,
    chosen: SessionRecord,
    request: CallRequest,
    waited_s: float,
) -> None:
    """If the version is hot, have one more worker load it by a copy of the call, whose answer nobody waits for."""
    session = await workers.place_for_copy(version, chosen, waited_s)
    if session is None:
        return
    copy = replace(request, id=new_id("call"), deadline_at=time.time() + LOADING_LIMIT_S)
    log.info("call.copied", model=request.model_ref, worker=session.worker)
    try:
        await sender.call(session.worker, copy)
    except OndolError as exc:
        log.info("call.copy_failed", worker=session.worker, reason=exc.message[:200])


async def _unless_session_ends(
    workers: WorkerChooser, sender: CallSender, session: SessionRecord, request: CallRequest
) -> CallReply | None:
    """The answer, or None when the session ended first."""
    call = asyncio.create_task(sender.call(session.worker, request))
    try:
        while True:
            done, _ = await asyncio.wait([call], timeout=LOOK_S)
            if done:
                return call.result()
            if not await workers.is_open(session):
                return None
    finally:
        call.cancel()
