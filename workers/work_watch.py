"""The watch over a Celery node's own ears: work lies for it, and it hears nothing.

Three things may be wrong, and each has its cure. Messages lie in Redis and are not taken: the consumer is deaf (its
link is half open, or a reconnect has stalled), so it connects anew, and if that does not help, the process ends and is
started again. Work waits in SQL and is not rung, or was rung and lost: the node rings by itself, also when no
reconciler lives. Redis does not answer this node at all: nothing must be rung for it, so its session is not ready.

Silence is counted in looks, some seconds at most each: a process that was frozen has missed nothing meanwhile.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from ondol.broker.lying import ANSWER_LIMIT_S, QueueLook
from ondol.contract.errors import DatabaseUnavailable
from ondol.control.repairs import count_repair
from ondol.control.ringer import Ringer
from ondol.sql.database import Database
from ondol.sql.sessions import INFER
from ondol.sql.unit_of_work import UnitOfWork
from workers.claims import Claims
from workers.hearing import Hearing
from workers.session import SessionKeeper
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

DEAF, RESTARTED, BACKLOG, LOST = "worker_deaf", "worker_restarted", "backlog_idle", "message_lost"
EXIT_DEAF = 71
_LOOK_S = 1.0
_MOST_BETWEEN_LOOKS_S = _LOOK_S + 2 * ANSWER_LIMIT_S
_END_SLACK_S = 5.0
_LOOKS_A_LIMIT = 4
_RECONNECT_LIMIT_S = 12.0
"""The consumer may first have to wait for an answer that does not come, for five seconds."""


@dataclass(slots=True)
class _Silence:
    """Seconds that were seen without a message; all of it begins anew when one comes."""

    lying_s: float = 0.0
    """While messages lay in Redis."""
    idle_s: float = 0.0
    """While this node held nothing."""
    has_reconnected: bool = False
    has_rung: bool = False
    """At its last look at the backlog: what it hears then is its own bell, later others'."""


class WorkWatch:
    """Looks from a thread of its own once a second or oftener. `hears` is False while Redis does not answer."""

    def __init__(
        self,
        *,
        database: Database,
        queues: QueueLook,
        ringer: Ringer,
        session: Callable[[], SessionKeeper],
        worker: str,
        hearing: Hearing,
        is_idle: Callable[[], bool],
        end: Callable[[], None],
        unheard_s: float,
        role: str = INFER,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`role`: whose backlog is looked at. `has_room`: whether a handler is free; else nothing is read in Redis."""
        self._role = role
        self._has_room = has_room
        self._database = database
        self._queues = queues
        self._ringer = ringer
        self._session = session
        self._worker = worker
        self._hearing = hearing
        self._is_idle = is_idle
        self._end = end
        self._unheard_s = unheard_s
        self._look_s = min(_LOOK_S, unheard_s / _LOOKS_A_LIMIT)
        self._silence = _Silence()
        self._num_heard = 0
        self._unanswered_s = 0.0
        self._hears = True
        self._stopping = threading.Event()
        self._thread = vital_thread("work-watch", self._loop)

    def start(self) -> None:
        """Begin to look; the session keeper must have been made."""
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Look no more; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """Look no more, and let go of the connection."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._queues.close()

    @property
    def hears(self) -> bool:
        """Whether Redis answers this node: if not, work that is rung for it would wait in vain."""
        return self._hears

    def _loop(self) -> None:
        looked_at = time.monotonic()
        while not self._stopping.wait(self._look_s):
            now = time.monotonic()
            passed_s, looked_at = min(now - looked_at, _MOST_BETWEEN_LOOKS_S), now
            self._look(passed_s)

    def _look(self, passed_s: float) -> None:
        num_heard = self._hearing.num_heard
        if num_heard != self._num_heard:
            if self._silence.has_rung:
                count_repair(self._database, BACKLOG)
            self._num_heard, self._silence = num_heard, _Silence()
        num_lying = self._queues.num_lying()
        self._note_answer(num_lying is not None, passed_s)
        if self._session().current() is None:
            self._silence = _Silence()
            return
        silence = self._silence
        self._note_lying(silence, num_lying, passed_s)
        silence.idle_s = silence.idle_s + passed_s if self._is_idle() else 0.0
        if silence.lying_s > self._unheard_s:
            self._cure_deafness(silence, num_lying or 0)
        if silence.idle_s > self._unheard_s:
            self._cure_idleness(silence)

    def _note_lying(self, silence: _Silence, num_lying: int | None, passed_s: float) -> None:
        if num_lying and self._has_room():
            silence.lying_s += passed_s
            return
        silence.lying_s = 0.0
        if num_lying is not None:  # nothing lies that could be heard: the next time is another one, with its own cure
            silence.has_reconnected = False

    def _note_answer(self, has_answered: bool, passed_s: float) -> None:
        self._unanswered_s = 0.0 if has_answered else self._unanswered_s + passed_s
        hears = self._unanswered_s <= self._unheard_s
        if hears != self._hears:
            self._hears = hears
            log.warning("worker.redis_answers" if hears else "worker.redis_does_not_answer", worker=self._worker)
            self._session().renew_soon()

    def _cure_deafness(self, silence: _Silence, num_lying: int) -> None:
        if not silence.has_reconnected:
            silence.has_reconnected = True
            log.warning("worker.deaf", worker=self._worker, num_lying=num_lying, cure="the consumer connects anew")
            self._hearing.connect_anew()
            count_repair(self._database, DEAF)
        elif silence.lying_s > self._unheard_s + _RECONNECT_LIMIT_S:
            log.error("worker.deaf", worker=self._worker, num_lying=num_lying, cure="the process ends")
            count_repair(self._database, RESTARTED)
            self._stopping.set()
            self._end()

    def _cure_idleness(self, silence: _Silence) -> None:
        """Ring what waits for long, again what was rung for this node for long; once a limit of silence."""
        silence.idle_s = 0.0
        try:
            num_lost, oldest_s = self._database.read(self._what_waits)
            if num_lost:
                num_lost = self._database.write(self._recall)
                count_repair(self._database, LOST, num_lost)
        except DatabaseUnavailable as exc:
            log.debug("watch.skipped", reason=exc.message)
            return
        silence.has_rung = bool(num_lost) or oldest_s > self._unheard_s
        if silence.has_rung:
            log.warning("worker.idle_with_backlog", worker=self._worker, num_lost=num_lost, oldest_s=round(oldest_s, 1))
            self._ringer.ring_soon()

    def _what_waits(self, uow: UnitOfWork) -> tuple[int, float]:
        before = uow.now - self._unheard_s
        return uow.ringing.num_unclaimed_of(self._worker, rung_before=before), uow.ringing.oldest_waiting_s(self._role)

    def _recall(self, uow: UnitOfWork) -> int:
        return uow.ringing.recall_unclaimed(rung_before=uow.now - self._unheard_s, worker=self._worker)


def watch_of_node(
    *,
    database: Database,
    redis_url: str,
    queues: Sequence[str],
    ringer: Ringer,
    session: Callable[[], SessionKeeper],
    worker: str,
    hearing: Hearing,
    claims: Claims,
    num_handlers: int,
    role: str,
    unheard_s: float,
    grace_s: float,
) -> WorkWatch:
    """The watch over a node that takes messages from `queues` on `num_handlers` threads, which say in `claims` what
    they have; one that is deaf for good ends within `grace_s`, the time to hand its work back.
    """
    return WorkWatch(
        database=database,
        queues=QueueLook(redis_url, queues),
        ringer=ringer,
        session=session,
        worker=worker,
        hearing=hearing,
        is_idle=lambda: claims.is_empty,
        end=lambda: _end_for_a_new_start(grace_s),
        unheard_s=unheard_s,
        role=role,
        has_room=lambda: claims.num_messages < num_handlers,
    )


def _end_for_a_new_start(grace_s: float) -> None:
    """Stop as on SIGTERM, with what is held handed back; at the latest when the grace is over, with exit code 71."""
    limit = threading.Timer(grace_s + _END_SLACK_S, os._exit, (EXIT_DEAF,))
    limit.daemon = True
    limit.start()
    os.kill(os.getpid(), signal.SIGTERM)
