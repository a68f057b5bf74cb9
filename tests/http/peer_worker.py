"""A worker as the api knows one: a session in SQL, messages claimed and completed, calls answered over Redis.

It is a peer that speaks the real protocols, with arithmetic in place of a model: the vector of a text is drawn from its
digest, float32 [8], and so are its label scores [3]; its entities are the words with a capital. So any answer can be
computed by the test as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import sqlalchemy as sa

from ondol.broker.call_worker import CallTaker, ReplySender
from ondol.broker.calls import CallReply, CallRequest, error_header, reply_header, request_key
from ondol.broker.connection import connect
from ondol.broker.wake import WakeBus
from ondol.contract.errors import OndolError
from ondol.contract.frames import pack_frame
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion
from ondol.sql.tables import messages
from ondol.sql.unit_of_work import UnitOfWork
from tests.http.api_process import MOODS, SPEC
from tests.waiting import wait_until

Array = np.ndarray[Any, np.dtype[np.float32]]

LEASE_S = 3600.0
TIMINGS = {"queue_wait_s": 0.001, "load_s": 0.0, "tokenize_s": 0.002, "forward_s": 0.003, "store_s": 0.004}


def vector_of(item: str | list[int] | dict[str, str]) -> Array:
    """What this worker answers for an input: float32 [8]."""
    digest = hashlib.sha256(repr(item).encode()).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.float32) / np.float32(2**32)


def scores_of(item: str | list[int] | dict[str, str]) -> Array:
    """What this worker answers for an input of `MOODS`: float32 [3], which sum to one."""
    found = vector_of(item)[: len(MOODS.labels)]
    return np.asarray(found / found.sum(), dtype=np.float32)


def entities_of(text: str) -> list[dict[str, Any]]:
    """What this worker answers for an input of `NAMES`."""
    return [
        {"entity_group": "NAME", "score": 0.75, "word": match[0], "start": match.start(), "end": match.end()}
        for match in re.finditer(r"[A-Z]\w+", text)
    ]


class PeerWorker:
    """One ready worker. `answers_calls` false: calls wait for ever."""

    def __init__(self, database: Database, redis_url: str, name: str, *, answers_calls: bool = True) -> None:
        self.name = name
        self.seen: list[CallRequest] = []
        self._database = database
        self._redis_url = redis_url
        self._wake = WakeBus(redis_url)
        self._taker = CallTaker(redis_url, name)
        self._replies = ReplySender(redis_url)
        self._stopping = threading.Event()
        self._answers_calls = answers_calls
        self.session_id = database.write(self._open)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the session and stop."""
        self._stopping.set()
        with closing(connect(self._redis_url)) as client:
            client.rpush(request_key(self.name, Priority.BULK), b"")  # ends the wait for a call at once
        self._database.write(lambda uow: uow.sessions.end(self.session_id, reason="test"))
        self._thread.join(timeout=10)
        self._taker.close()
        self._replies.close()
        self._wake.close()

    def claim_next(self) -> list[ClaimedJob]:
        """Claim what was rung for this worker; waits for it."""
        message_id = str(wait_until(self._rung, within_s=10, what="a message for the worker"))
        return self._database.write(
            lambda uow: uow.attempts.claim(message_id, session_id=self.session_id, worker=self.name)
        )

    def complete(self, jobs: Sequence[ClaimedJob], *, errors: dict[str, Any] | None = None) -> None:
        """Record results of jobs and wake those who wait."""
        done = [self._completion(job, errors or {}) for job in jobs]
        self._database.write(lambda uow: uow.attempts.complete(done))
        self._wake.wake([job.id for job in jobs])

    def run_one_message(self, *, errors: dict[str, Any] | None = None) -> list[ClaimedJob]:
        """Claim and complete one message."""
        claimed = self.claim_next()
        self.complete(claimed, errors=errors)
        return claimed

    def _open(self, uow: UnitOfWork) -> str:
        session_id = uow.sessions.open(
            worker=self.name, device="cpu:0", device_kind="cpu-f32", host="test", pid=1, lease_s=LEASE_S
        )
        uow.sessions.renew(session_id, lease_s=LEASE_S, is_ready=True, warm=[])
        return session_id

    def _rung(self) -> str | None:
        query = sa.select(messages.c.id).where(messages.c.worker == self.name, messages.c.claimed_at.is_(None))
        return self._database.read(lambda uow: uow.conn.execute(query.order_by(messages.c.id).limit(1)).scalar())

    def _completion(self, job: ClaimedJob, errors: dict[str, Any]) -> Completion:
        inputs = json.loads(job.payload)
        named = {}
        if isinstance(inputs, dict):  # a shard of a file with an id column
            inputs, named = inputs["inputs"], {"ids": inputs["ids"]}
        data, about = _stored(job.kind, inputs, job.options, errors)
        summary: dict[str, Any] = {
            "kind": job.kind.value,
            "tokens": [_num_tokens(item) for item in inputs],
            "truncated": [],
            "errors": errors,
            "model": job.model_ref,
            "dtype": "float32",
            "engine": "torch",
            "num_tokens": sum(_num_tokens(item) for item in inputs),
            **about,
            **named,
        }
        return Completion(
            job_id=job.id,
            attempt=job.attempt,
            summary=summary,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            tokens=summary["num_tokens"],
            timings=TIMINGS,
            data=data,
        )

    def _loop(self) -> None:
        while not self._stopping.is_set():
            for api_id, request in self._taker.take(64) if self._answers_calls else ():
                self.seen.append(request)
                self._replies.send(api_id, _frame(request))
            if not self._answers_calls:
                self._stopping.wait(0.05)


def _frame(request: CallRequest) -> bytes:
    try:
        header, body = reply_header(request.id, _reply(request))
    except OndolError as exc:
        return pack_frame(error_header(request.id, exc))
    return pack_frame(header, [body])


def _stored(
    kind: JobKind, inputs: list[Any], options: dict[str, Any], errors: dict[str, Any]
) -> tuple[bytes, dict[str, Any]]:
    """Data of a result and what its summary says of them."""
    if kind is JobKind.TOKEN_CLASSIFICATION:
        found = [[] if str(i) in errors else entities_of(item) for i, item in enumerate(inputs)]
        return json.dumps(found).encode(), {"format": "json", "shape": None}
    is_scores = kind is JobKind.TEXT_CLASSIFICATION
    rows = np.stack([scores_of(item) if is_scores else vector_of(item) for item in inputs])
    rows[[int(i) for i in errors]] = 0
    about = _about_scores(options) if is_scores else {"encoding": options["encoding"]}
    return rows.astype("<f4").tobytes(), {"shape": list(rows.shape), **about}


def _about_scores(options: dict[str, Any]) -> dict[str, Any]:
    named = {"top_k": options["top_k"], "threshold": options["threshold"]}
    return {"labels": list(MOODS.labels), "function": options["function_to_apply"] or "softmax", **named}


def _reply(request: CallRequest) -> CallReply:
    tokens = [_num_tokens(item) for item in request.inputs]
    limit = request.options["max_length"] or SPEC.max_length
    is_strict = request.options.get("truncate") == "error"
    errors = {
        i: {"code": "context_length_exceeded", "message": f"{n} tokens, the limit is {limit}", "param": None}
        for i, n in enumerate(tokens)
        if n > limit and is_strict
    }
    vectors, about, outputs = _answer(request)
    return CallReply(
        vectors=vectors,
        tokens=tokens,
        truncated=[n > limit for n in tokens],
        errors=errors,
        model=request.model_ref,
        dtype="float32",
        engine="torch",
        timings=TIMINGS,
        about=about,
        outputs=outputs,
    )


def _answer(request: CallRequest) -> tuple[Array, dict[str, Any], list[Any] | None]:
    """Vectors, about and outputs of a reply."""
    if request.kind is JobKind.TOKEN_CLASSIFICATION:
        return np.zeros((len(request.inputs), 0), np.float32), {}, [entities_of(str(text)) for text in request.inputs]
    if request.kind is JobKind.TEXT_CLASSIFICATION:
        return np.stack([scores_of(item) for item in request.inputs]), _about_scores(request.options), None
    return np.stack([vector_of(item) for item in request.inputs])[:, : request.options["dimensions"] or 8], {}, None


def _num_tokens(item: str | list[int] | dict[str, str]) -> int:
    if isinstance(item, dict):
        return sum(_num_tokens(text) for text in item.values()) - 1
    return len(item.split()) + 2 if isinstance(item, str) else len(item)
