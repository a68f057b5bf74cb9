"""The dispatcher: batches to the device, one formed ahead, and their results back to the rows.

When the device process dies, only the batch that was on the device is suspect. It is bisected, each half with the
device for itself, until the guilty row is alone; a row that was alone in three deaths fails with `worker_lost`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import structlog
from prometheus_client import CollectorRegistry

from ondol.contract.errors import DeviceError, DeviceLost, OndolError, WorkerLost
from ondol.contract.frames import Header
from ondol.metrics.batches import BatchMetrics, RowsOfClass
from ondol.sql.attempts import MAX_COUNTED_LOSSES
from workers.batcher import Batcher
from workers.device_keeper import DeviceKeeper
from workers.rows import DEFAULT_ENGINE, Batch, FloatArray, IntArray, Row, Work
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

MAX_AHEAD = 2
ROW_FAULTS = frozenset({"device_error", "internal_error", "invalid_payload"})
"""Codes of a refused batch that may be one row's fault; the others (a missing head, no memory) are everybody's."""


class Dispatcher:
    """One thread packs and sends; replies are settled on the device keeper's thread."""

    def __init__(
        self,
        batcher: Batcher,
        keeper: DeviceKeeper,
        *,
        on_ran: Callable[[Header], None],
        metrics: BatchMetrics | None = None,
    ) -> None:
        self._metrics = metrics or BatchMetrics(CollectorRegistry())
        self._batcher = batcher
        self._keeper = keeper
        self._on_ran = on_ran
        self._in_flight: list[Batch] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = vital_thread("dispatcher", self._loop)

    def start(self) -> None:
        """Begin to dispatch."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while True:
            if not self._keeper.wait_up(0.2):
                if self._stopping:
                    return
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._may_send(), 1.0)
                if self._stopping:
                    return
                if not self._may_send():
                    continue
                num_in_flight = len(self._in_flight)
            batch = self._batcher.next_batch(0.2, is_idle=num_in_flight == 0)
            if batch is not None:
                self._send(batch)
            elif num_in_flight:
                self._wait_for_a_reply(num_in_flight)

    def _may_send(self) -> bool:
        if any(batch.is_exclusive for batch in self._in_flight):
            return False
        return len(self._in_flight) < MAX_AHEAD

    def _wait_for_a_reply(self, num_before: int) -> None:
        """Wait until fewer batches are in flight than there were; one may have come back meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._in_flight) < num_before, 0.05)

    def _send(self, batch: Batch) -> None:
        with self._changed:
            self._in_flight.append(batch)
        now = time.monotonic()
        for work in _works_of(batch):
            if work.started_at is None:
                work.started_at = now
        skips = [row.skip for row in batch.rows]
        has_type_ids = any(row.type_ids is not None for row in batch.rows)
        header: Header = {
            "op": "run",
            "model": batch.key.model.as_header(),
            "spec": batch.key.spec(),
            "lengths": [row.num_tokens for row in batch.rows],
            "skip": skips if any(skips) else None,
            "has_type_ids": has_type_ids,
        }
        body = [_as_bytes([row.ids for row in batch.rows])]
        if has_type_ids:
            body.append(_as_bytes([_type_ids_of(row) for row in batch.rows]))
        future = self._keeper.request(header, body)
        future.add_done_callback(lambda done: self._settle(batch, done))

    def _settle(self, batch: Batch, future: Future[tuple[Header, memoryview]]) -> None:
        with self._changed:
            self._in_flight.remove(batch)
            self._changed.notify_all()
        error = future.exception()
        if not isinstance(error, DeviceLost) or error.was_on_device:
            self._batcher.forget(batch)
        if isinstance(error, DeviceLost):
            self._after_loss(batch, is_suspect=error.was_on_device)
        elif error is not None:
            self._after_error(batch, error)
        else:
            try:
                self._deliver(batch, *future.result())
            except Exception as exc:  # the callback's edge: rows that nobody settles would be waited for without end
                log.exception("device.reply_unusable", num_rows=len(batch.rows))
                _fail_all(batch, exc)

    def _deliver(self, batch: Batch, header: Header, body: memoryview) -> None:
        self._on_ran(header)
        works = _works_of(batch)
        self._count(batch, header)
        flat = np.frombuffer(body, dtype="<f4")
        flat.setflags(write=False)  # twins share it
        row_errors = header.get("row_errors") or {}
        outputs = _split(flat, header, batch)
        share_s = float(header["forward_s"])
        for work in works:
            work.started_at = work.started_at or batch.formed_at
            work.forward_s += share_s
            work.engines.add(str(header.get("engine", DEFAULT_ENGINE)))
            work.load_s += float(header.get("load_s", 0.0))
        for i, row in enumerate(batch.rows):
            failed = row_errors.get(str(i))
            if failed is not None:
                row.settle(None, DeviceError(failed["message"], code=failed["code"]))
            else:
                row.settle(outputs[i], None)

    def _count(self, batch: Batch, header: Header) -> None:
        classes: dict[str, RowsOfClass] = {}
        waited: dict[int, tuple[Work, int]] = {}
        for row in batch.rows:
            work, num = waited.get(id(row.work), (row.work, 0))
            waited[id(work)] = (work, num + 1)
            of_class = classes.setdefault(work.priority.value, RowsOfClass())
            of_class.num_rows += 1
            of_class.num_tokens += len(row.ids)
            of_class.num_shared += len(row.twins)
        for work, num in waited.values():
            waited_s = max(0.0, batch.formed_at - work.enqueued_at)
            classes[work.priority.value].waited_s.append((waited_s, num))
        self._metrics.ran(batch.release, classes, header)

    def _after_loss(self, batch: Batch, *, is_suspect: bool) -> None:
        if not is_suspect:
            self._batcher.put_back(batch)
            return
        if len(batch.rows) == 1:
            self._count_loss(batch.rows[0], batch)
            return
        self._bisect(batch)

    def _after_error(self, batch: Batch, error: BaseException) -> None:
        """The device refused the whole batch; where one row may be the reason, find it."""
        if len(batch.rows) > 1 and isinstance(error, OndolError) and error.code in ROW_FAULTS:
            self._bisect(batch)
        else:
            _fail_all(batch, error)

    def _bisect(self, batch: Batch) -> None:
        half = len(batch.rows) // 2
        for row in batch.rows:
            row.is_suspect = True
        log.warning("device.bisect", num_rows=len(batch.rows))
        self._batcher.add_suspects(
            [Batch(batch.key, rows, is_exclusive=True) for rows in (batch.rows[:half], batch.rows[half:])]
        )

    def _count_loss(self, row: Row, batch: Batch) -> None:
        row.count_loss()
        log.warning("device.lost_alone", work_id=row.work.id, row=row.index, num_losses=row.num_losses)
        if row.num_losses >= MAX_COUNTED_LOSSES:
            message = f"the device process died {row.num_losses} times while it ran this text alone"
            row.settle(None, WorkerLost(message))
            return
        self._batcher.add_suspects([Batch(batch.key, [row], is_exclusive=True)])


def _fail_all(batch: Batch, error: BaseException) -> None:
    known = error if isinstance(error, OndolError) else DeviceError(f"the batch failed: {type(error).__name__}")
    for row in batch.rows:
        row.settle(None, known)


def _works_of(batch: Batch) -> list[Work]:
    """The works of all rows, and of those that share their outputs, each once."""
    works = {id(row.work): row.work for row in batch.rows}
    works.update((id(twin.work), twin.work) for row in batch.rows if row.twins for twin in row.twins)
    return list(works.values())


def _as_bytes(rows: list[IntArray]) -> memoryview:
    """Token or type ids of all rows end to end, as they travel."""
    return np.concatenate(rows).astype("<i4", copy=False).data.cast("B")


def _type_ids_of(row: Row) -> IntArray:
    """The row's type ids [T]: zeros where it has none, as the model itself takes them."""
    return np.zeros(row.num_tokens, dtype=np.int32) if row.type_ids is None else row.type_ids


def _split(flat: FloatArray, header: Header, batch: Batch) -> list[FloatArray]:
    """One output a row: a vector [H], or token vectors [T, H] where there is one vector a token."""
    num_rows, dimensions = header["shape"]
    table = flat.reshape(num_rows, dimensions)
    if batch.key.is_by_token:
        ends = np.cumsum([row.num_tokens for row in batch.rows])
        return list(np.split(table, ends[:-1]))
    return list(table)
