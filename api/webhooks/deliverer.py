"""Delivering webhooks: a task beside the requests that claims due notices and tells each receiver, until it accepts.

Several api processes may do it at the same time. A claim lasts longer than a try; what a process that died had claimed
comes due again. A receiver that took a delivery whose record was lost gets it again under the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from api.database import AsyncDatabase
from api.flower_address import FlowerAddress
from api.webhooks.lanes import Lane, Lanes
from api.webhooks.message import Delivery, event_of, make_delivery
from api.webhooks.sender import MAX_PAUSE_S, Answer, Sender, Verdict
from ondol.broker.ending import end_tasks
from ondol.broker.wake import WakeListener, wait_event
from ondol.contract.errors import DatabaseUnavailable, InvalidPayload, JobNotFound, OndolError
from ondol.contract.webhooks import parse_webhook
from ondol.metrics.jobs import NoticeMetrics
from ondol.settings import ApiSettings
from ondol.sql.notices import Channel, DueNotice
from ondol.sql.unit_of_work import UnitOfWork

MAX_TRIES_AT_A_TIME = 32
MAX_HELD = 128
CLAIM_AT_ONCE = 64
POLL_S = 1.0
HINT_GAP_S = 0.05
"""Hints come by the hundred when many jobs end: SQL is not looked at more often than this."""
RECORD_S = 5.0
"""Time beyond a try that a claim leaves for recording it."""
STOP_S = 3.0
_AGAIN_S = 0.5
_UNTRIED = Answer(Verdict.UNTRIED, "no time was left for a try")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A notice that this process may try until `until` (monotonic seconds)."""

    notice: DueNotice
    lane: Lane
    receiver: str
    until: float


class WebhookDeliverer:
    """Tells receivers of the ends of jobs."""

    def __init__(
        self,
        database: AsyncDatabase,
        listener: WakeListener,
        sender: Sender,
        settings: ApiSettings,
        *,
        metrics: NoticeMetrics,
        flower: FlowerAddress,
    ) -> None:
        self._metrics = metrics
        self._flower = flower
        self._database = database
        self._listener = listener
        self._sender = sender
        self._timeout_s = settings.webhook_timeout_s
        self._first_pause_s = settings.webhook_first_pause_s
        self._give_up_s = settings.webhook_give_up_s
        self._lanes = Lanes()
        self._slots = asyncio.Semaphore(MAX_TRIES_AT_A_TIME)
        self._held: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._loop(), name="webhooks")

    async def stop(self) -> None:
        """Claim no more, and give what is under way a moment; the rest comes due again when its claim is over."""
        await end_tasks([self._task])
        if self._held:
            await asyncio.wait(self._held, timeout=STOP_S)
        await end_tasks(list(self._held))
        await self._sender.close()

    async def _loop(self) -> None:
        with self._listener.watch_all() as look:
            while True:
                look.clear()
                try:
                    wait_s = await self._round(look)
                except DatabaseUnavailable as exc:
                    log.warning("webhooks.wait_for_the_database", reason=exc.message)
                    wait_s = POLL_S
                except Exception:  # the task's edge: the next round is tried
                    log.exception("webhooks.round_failed")
                    wait_s = POLL_S
                if await wait_event(look, wait_s):
                    await asyncio.sleep(HINT_GAP_S)

    async def _round(self, look: asyncio.Event) -> float:
        """Claim what is due and begin to deliver it; seconds until there may be more without a hint."""
        room = min(CLAIM_AT_ONCE, MAX_HELD - len(self._held))
        if room < 1:
            return POLL_S  # the next that ends sets the event
        due_in_s = await self._database.read(lambda uow: uow.notices.next_due_in(Channel.WEBHOOK))
        if due_in_s is None or due_in_s > 0:
            return POLL_S if due_in_s is None else min(POLL_S, due_in_s)
        claim_s = 2 * self._timeout_s + RECORD_S  # the name may take as long as the receiver
        until = time.monotonic() + claim_s
        notices = await self._database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=claim_s, limit=room))
        await self._hand_back(self._begin_all(notices, until, look))
        return 0.0 if len(notices) == room else POLL_S

    def _begin_all(self, notices: Sequence[DueNotice], until: float, look: asyncio.Event) -> list[Claimed]:
        """Begin to deliver; those that find no room."""
        without_room = []
        for notice in notices:
            receiver = _receiver(notice)
            claimed = Claimed(notice, self._lanes.of(receiver), receiver, until)
            if not claimed.lane.has_room:
                without_room.append(claimed)
                continue
            claimed.lane.num_held += 1
            task = asyncio.create_task(self._deliver(claimed), name=f"webhook {notice.id}")
            self._held.add(task)
            task.add_done_callback(lambda done, lane=claimed.lane: self._let_go(done, lane, look))  # type: ignore[misc]  # bound at definition
        return without_room

    def _let_go(self, task: asyncio.Task[None], lane: Lane, look: asyncio.Event) -> None:
        lane.num_held -= 1
        self._held.discard(task)
        look.set()

    async def _hand_back(self, claimed: Sequence[Claimed]) -> None:
        """Put back what will not be tried, so that it holds up nobody."""
        now = time.time()
        pauses = [(each.notice, each.lane.pause_s(now - each.notice.created_at)) for each in claimed]
        if pauses:
            await self._database.write(lambda uow: uow.notices.hand_back_all(pauses))

    async def _deliver(self, claimed: Claimed) -> None:
        notice = claimed.notice
        try:
            answer = await self._answer(claimed)
            if answer.verdict is Verdict.UNTRIED:
                await self._hand_back([claimed])
            else:
                await self._record(claimed, answer)
        except JobNotFound:
            log.info("webhook.job_is_gone", job_id=notice.job_id, notice_id=notice.id)
        except DatabaseUnavailable as exc:  # the claim runs out, and the notice comes due again
            log.warning("webhook.not_recorded", job_id=notice.job_id, notice_id=notice.id, reason=exc.message)
        except Exception:  # the task's edge: the claim runs out, and the notice comes due again
            log.exception("webhook.failed", job_id=notice.job_id, notice_id=notice.id)

    async def _answer(self, claimed: Claimed) -> Answer:
        try:
            return await self._try(claimed)
        except OndolError:
            raise
        except Exception as exc:  # a fault of ours counts as a try: put off for longer each time, and given up
            log.exception("webhook.failed", job_id=claimed.notice.job_id, notice_id=claimed.notice.id)
            return Answer(Verdict.REFUSED, f"not sent: internal error ({type(exc).__name__})", is_silent=True)

    async def _try(self, claimed: Claimed) -> Answer:
        """How one try ended; UNTRIED if the claim would not last for it."""
        async with claimed.lane.slots:
            if time.monotonic() > claimed.until - 2 * self._timeout_s:
                return _UNTRIED
            began = time.monotonic()
            found = await self._sender.find(claimed.notice.webhook or "")  # names that hang hold no slot of everybody's
            took_s = time.monotonic() - began
            if isinstance(found, Answer):
                if found.verdict is not Verdict.UNTRIED:
                    claimed.lane.answered(took_s)
                return found
            async with self._slots:
                if time.monotonic() > claimed.until - self._timeout_s:
                    return _UNTRIED
                delivery = await self._make(claimed.notice)
                began = time.monotonic()
                answer = await self._sender.post(found, delivery.headers, delivery.body)
            claimed.lane.answered(took_s + time.monotonic() - began)
            return answer

    async def _make(self, notice: DueNotice) -> Delivery:
        flower_url = self._flower.url()

        def look(uow: UnitOfWork) -> tuple[dict[str, object], str | None]:
            job = uow.jobs.get(notice.job_id, notice.project_id)
            [end] = uow.events.after(notice.job_id, notice.seq - 1, limit=1)
            event = event_of(notice, job, ended_at=end.created_at, flower_url=flower_url)
            return event, uow.keys.find_webhook_secret(notice.project_id)

        event, secret = await self._database.read(look)
        if secret is None:
            secret = await self._database.write(lambda uow: uow.keys.ensure_webhook_secret(notice.project_id))
        return make_delivery(event, secret=secret, timestamp=int(time.time()))

    async def _record(self, claimed: Claimed, answer: Answer) -> None:
        """Write down how the try ended; again while the claim lasts, if the database does not answer."""
        while True:
            try:
                outcome = await self._database.write(lambda uow: self._close(uow, claimed.notice, answer))
            except DatabaseUnavailable:
                if time.monotonic() + _AGAIN_S > claimed.until:
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                self._metrics.tried(Channel.WEBHOOK, outcome)
                self._say(claimed, answer, outcome)
                return

    def _close(self, uow: UnitOfWork, notice: DueNotice, answer: Answer) -> str:
        """Close the notice or put it off; what became of it."""
        if answer.verdict is Verdict.ACCEPTED:
            return "accepted" if uow.notices.accept(notice, answer.text) else "overtaken"
        age_s = max(0.0, uow.now - notice.created_at)
        left_s = self._give_up_s - age_s
        if answer.verdict is Verdict.GONE or left_s <= 0:
            return "given_up" if uow.notices.give_up(notice, answer.text) else "overtaken"
        # As long again as it has waited so far: doubled each time, and begun anew when it is asked for again.
        pause_s = min(self._first_pause_s + age_s, MAX_PAUSE_S) * random.uniform(0.85, 1.15)
        if answer.retry_after_s is not None:
            pause_s = max(answer.retry_after_s, min(pause_s, self._first_pause_s))
        is_mine = uow.notices.put_off(notice, answer.text, for_s=min(pause_s, left_s))
        return "put_off" if is_mine else "overtaken"

    @staticmethod
    def _say(claimed: Claimed, answer: Answer, outcome: str) -> None:
        notice = claimed.notice
        say = log.warning if outcome == "given_up" else log.info
        say(
            f"webhook.{outcome}",
            job_id=notice.job_id,
            notice_id=notice.id,
            receiver=claimed.receiver,
            num_tries=notice.num_tries,
            answer=answer.text,
        )


def _receiver(notice: DueNotice) -> str:
    """Host and port: what shares a lane. The path may hold a secret and is shown to nobody."""
    try:
        target = parse_webhook(notice.webhook or "")
    except InvalidPayload:  # recorded under another rule; the try says what is wrong
        return "invalid"
    return f"{target.host}:{target.port}"
