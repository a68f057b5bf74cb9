"""A steady load for outages and restarts: single jobs, batches and calls at fixed rates; what became of each is noted.

Requests begin when they are due, whether earlier ones were answered or not, as those of many clients would.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import sqlalchemy as sa

from ondol.client.records import JobRequest
from ondol.client.sync_client import Ondol
from ondol.contract.errors import OndolError
from ondol.sql.database import Database
from ondol.sql.tables import attempts, jobs
from ondol.sql.unit_of_work import UnitOfWork

BATCH = 20
BULK = 4_000
NO_ANSWER = 0
CLIENT_TIMEOUT_S = 300.0
"""Longer than any answer may take, so that the longest is seen."""
_MOST_AT_ONCE = 160
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Noted:
    """One request: when it began and how long it took (seconds, since the load began), and its answer.

    `status` is NO_ANSWER where none came; `says_when`: it had a Retry-After; `ids`: the jobs that it accepted.
    """

    what: str
    began_s: float
    took_s: float
    status: int
    code: str = ""
    says_when: bool = False
    ids: tuple[str, ...] = ()

    @property
    def ended_s(self) -> float:
        """When the answer was there."""
        return self.began_s + self.took_s

    @property
    def is_good(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300

    @property
    def is_refusal(self) -> bool:
        """Whether it says that the system cannot now, and when to come back."""
        return self.status in (429, 503) and self.says_when


@dataclass(frozen=True, slots=True)
class Reply:
    """What a sender found: see `Noted`."""

    status: int
    code: str = ""
    says_when: bool = False
    ids: tuple[str, ...] = ()


Sender = Callable[[int], Reply]
"""Sends the n-th request of its kind; blocks until it is answered and raises nothing."""


@dataclass(slots=True)
class SteadyLoad:
    """Sends until `stop`, each kind at its rate (requests a second); for a `with` statement."""

    senders: Mapping[str, Sender]
    rates: Mapping[str, float]
    noted: list[Noted] = field(default_factory=list)
    _began: float = 0.0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _pacers: list[threading.Thread] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_MOST_AT_ONCE))

    def __enter__(self) -> SteadyLoad:
        self._began = time.monotonic()
        for what in self.senders:
            pacer = threading.Thread(target=self._pace, args=(what,), name=f"load-{what}", daemon=True)
            self._pacers.append(pacer)
            pacer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def now_s(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """Send no more, and wait for the answers to what was sent."""
        self._stopping.set()
        for pacer in self._pacers:
            pacer.join()
        self._pool.shutdown(wait=True)

    def accepted(self) -> list[str]:
        """Ids of the jobs that were accepted until now."""
        return [job_id for each in list(self.noted) for job_id in each.ids]

    def good_since(self, began_s: float, what: str) -> Noted | None:
        """The good answer that came first among those to requests of a kind that began after a moment."""
        found = [n for n in list(self.noted) if n.what == what and n.is_good and n.began_s >= began_s]
        return min(found, key=lambda each: each.ended_s) if found else None

    def _pace(self, what: str) -> None:
        for number in itertools.count():
            due_s = number / self.rates[what]
            if self._stopping.wait(max(0.0, due_s - self.now_s)):
                return
            self._pool.submit(self._send, what, number)

    def _send(self, what: str, number: int) -> None:
        began_s = self.now_s
        reply = self.senders[what](number)
        self.noted.append(
            Noted(what, began_s, self.now_s - began_s, reply.status, reply.code, reply.says_when, reply.ids)
        )


class OneTry:
    """Requests that are sent once, as they are: what the server answers is what is noted."""

    def __init__(self, url: str, model: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_MOST_AT_ONCE)
        self._http = httpx.Client(base_url=url, timeout=CLIENT_TIMEOUT_S, limits=limits, trust_env=False)
        self._model = model

    def senders(self) -> dict[str, Sender]:
        """Single jobs, batches of `BATCH`, calls."""
        return {"job": self._job, "batch": self._batch, "call": self._call}

    def store_senders(self) -> dict[str, Sender]:
        """What needs the store: uploads, and jobs of `BULK` inputs, whose results are too large for SQL."""
        return {"upload": self._upload, "bulk": self._bulk}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _upload(self, number: int) -> Reply:
        file = {"file": (f"{number}.txt", f"text {number}\n".encode())}
        return self._sent(lambda: self._http.post("/v1/files", files=file, data={"purpose": "user_data"}))

    def _bulk(self, number: int) -> Reply:
        texts = [f"text {number} of {i}" for i in range(BULK)]
        return self._post("/v1/jobs", {"kind": "embedding", "model": self._model, "input": texts, "priority": "bulk"})

    def _job(self, number: int) -> Reply:
        return self._post("/v1/jobs", {"kind": "embedding", "model": self._model, "input": f"text {number}"})

    def _batch(self, number: int) -> Reply:
        texts = [f"text {number} of {i}" for i in range(BATCH)]
        wanted = [{"kind": "embedding", "model": self._model, "input": text} for text in texts]
        return self._post("/v1/jobs/batch", {"jobs": wanted})

    def _call(self, number: int) -> Reply:
        return self._post("/v1/embeddings", {"model": self._model, "input": f"call {number}"})

    def _post(self, path: str, body: dict[str, object]) -> Reply:
        headers = {"idempotency-key": str(uuid.uuid4())}
        return self._sent(lambda: self._http.post(path, json=body, headers=headers))

    def _sent(self, send: Callable[[], httpx.Response]) -> Reply:
        try:
            answer = send()
        except httpx.TransportError as exc:
            return Reply(NO_ANSWER, type(exc).__name__)
        found = answer.json()
        if answer.status_code >= 400:
            return Reply(answer.status_code, str(found["error"]["code"]), "retry-after" in answer.headers)
        made = [found, *(found.get("data") or ())]
        return Reply(answer.status_code, ids=tuple(each["id"] for each in made if each.get("object") == "job"))


class ThroughSdk:
    """Requests as an application sends them: through one client with its default retries."""

    def __init__(self, client: Ondol, model: str) -> None:
        self._client = client
        self._model = model

    def senders(self) -> dict[str, Sender]:
        """Single jobs that are waited for, batches of `BATCH`, calls."""
        return {"job": self._job, "batch": self._batch, "call": self._call}

    def _job(self, number: int) -> Reply:
        def work() -> tuple[str, ...]:
            job = self._client.jobs.create("embedding", input=f"text {number}", model=self._model)
            job.result()
            return (job.id,)

        return _told(work)

    def _batch(self, number: int) -> Reply:
        def work() -> tuple[str, ...]:
            wanted = [
                JobRequest(kind="embedding", input=f"text {number} of {i}", model=self._model) for i in range(BATCH)
            ]
            return tuple(job.id for job in self._client.jobs.create_many(wanted))

        return _told(work)

    def _call(self, number: int) -> Reply:
        def work() -> tuple[str, ...]:
            self._client.embed(f"call {number}", model=self._model)
            return ()

        return _told(work)


def _told(work: Callable[[], tuple[str, ...]]) -> Reply:
    try:
        return Reply(200, ids=work())
    except OndolError as exc:
        return Reply(int(getattr(exc, "status", NO_ANSWER)), exc.code)


@dataclass(frozen=True, slots=True)
class Fate:
    """What SQL says of jobs: how many by state ("gone": no row), shards that failed, attempts that ended as lost."""

    states: Mapping[str, int]
    num_failed_shards: int
    num_lost_attempts: int

    @property
    def num_lost(self) -> int:
        """Jobs that did not succeed, and shards that left their inputs without a result."""
        return sum(self.states.values()) - self.states.get("succeeded", 0) + self.num_failed_shards

    @property
    def num_unfinished(self) -> int:
        """Jobs that have not ended."""
        ended = ("succeeded", "failed", "cancelled", "gone")
        return sum(num for state, num in self.states.items() if state not in ended)


def fate_of(database: Database, ids: Sequence[str]) -> Fate:
    """The fate of the jobs with these ids."""
    states: Counter[str] = Counter()
    num_failed = num_lost = 0
    for first in range(0, len(ids), _CHUNK):
        part = ids[first : first + _CHUNK]
        found, failed, lost = database.read(lambda uow, part=part: _look(uow, part))  # type: ignore[misc]
        states.update(found)
        states["gone"] += len(part) - len(found)
        num_failed, num_lost = num_failed + failed, num_lost + lost
    return Fate({state: num for state, num in states.items() if num}, num_failed, num_lost)


def _look(uow: UnitOfWork, ids: Sequence[str]) -> tuple[list[str], int, int]:
    states = [row.state for row in uow.conn.execute(sa.select(jobs.c.state).where(jobs.c.id.in_(ids)))]
    count = sa.select(sa.func.count())
    has_failed = sa.and_(jobs.c.parent_id.in_(ids), jobs.c.state == "failed")
    num_failed = uow.conn.execute(count.select_from(jobs).where(has_failed)).scalar_one()
    is_lost = sa.and_(attempts.c.job_id.in_(ids), attempts.c.outcome == "lost")
    return states, int(num_failed), int(uow.conn.execute(count.select_from(attempts).where(is_lost)).scalar_one())
