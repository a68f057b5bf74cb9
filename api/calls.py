"""Sending a call to a worker, and to the next one when its session ends first. Calls are pure: twice is harmless."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from api.worker_choice import WorkerChooser
from ondol.broker.calls import CallReply, CallRequest, CallSender
from ondol.contract.ids import new_id
from ondol.sql.records import SessionRecord, VersionRecord

LOOK_S = 0.5

log = structlog.get_logger(__name__)


async def send_call(
    workers: WorkerChooser, sender: CallSender, version: VersionRecord, request: CallRequest
) -> CallReply:
    """The answer of a ready worker. Raises NotReady when none is left, and what `CallSender.call` raises.

    A worker that stops or dies answers no more; its calls go to the next as soon as its session is over.
    """
    gone: set[str] = set()
    while True:
        session = await workers.choose(version, gone=gone)
        reply = await _unless_session_ends(workers, sender, session, request)
        if reply is not None:
            return reply
        log.warning("call.sent_again", call_id=request.id, worker=session.worker)
        gone.add(session.id)
        request = replace(request, id=new_id("call"))


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
