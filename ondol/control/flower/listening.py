"""What the dashboard hears from the nodes and remembers, within bounds, over restarts."""

from __future__ import annotations

import dbm
import threading
from pathlib import Path
from typing import Any

import structlog
from celery import Celery
from celery.events import EventReceiver
from flower.events import Events, EventsState
from flower.inspector import Inspector
from tornado.ioloop import IOLoop

from ondol.control.flower.without_texts import event_without_texts, report_without_texts

MAX_NODES = 500
SAVE_EVERY_S = 60
_PAUSE_S = 2.0
_END_LIMIT_S = 3.0
_SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag")

log = structlog.get_logger(__name__)


class Listener(Events):  # type: ignore[misc]  # flower is untyped
    """Flower's memory of events, without texts, saved to `state_file` every minute and at the end.

    A state file that cannot be read is moved aside, and the memory begins empty.
    """

    def __init__(self, celery_app: Celery, loop: IOLoop, *, state_file: Path, max_tasks: int) -> None:
        state_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stopping = threading.Event()
        self._receiver: EventReceiver | None = None
        super().__init__(
            celery_app,
            loop,
            db=str(state_file),
            persistent=True,
            enable_events=False,  # our nodes announce their tasks anyway; asking them again every 5 s is for others
            state_save_interval=SAVE_EVERY_S * 1000,
            max_workers_in_memory=MAX_NODES,
            max_tasks_in_memory=max_tasks,
        )

    def run(self) -> None:
        """Hear events until told to stop; a lost connection is tried again every two seconds, for ever."""
        while not self._stopping.is_set():
            try:
                self._capture()
            except Exception as exc:  # noqa: BLE001 - the edge of the thread: whatever one event was, the next is heard
                log.warning("flower.not_listening", reason=str(exc)[:200], error=type(exc).__name__)
                self._stopping.wait(_PAUSE_S)

    def stop(self) -> None:
        """Stop hearing and save. On the loop's thread; blocks for seconds at most."""
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        self.join(_END_LIMIT_S)  # a receiver that ends takes its queue with it
        super().stop()

    def on_event(self, event: dict[str, Any]) -> None:
        """Remember the event, less its texts."""
        kept = event_without_texts(event)
        if kept is not None:
            super().on_event(kept)

    def load_state(self) -> EventsState | None:
        """What was saved, if it is a memory of events."""
        state = super().load_state()
        if state is None or isinstance(state, EventsState):
            return state
        log.warning("flower.foreign_state", file=self.db)
        for path in (Path(self.db + suffix) for suffix in _SUFFIXES):
            if path.exists():
                path.replace(f"{path}.corrupt")
        return None

    def save_state(self) -> None:
        """Save; a disk that refuses costs no more than the memory of the next restart."""
        try:
            super().save_state()
        except dbm.error as exc:
            log.warning("flower.state_not_saved", reason=str(exc)[:200])

    def _capture(self) -> None:
        with self.capp.connection() as connection:
            self._receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
            self._receiver.should_stop = self._stopping.is_set()
            self._receiver.capture(limit=None, timeout=None, wakeup=True)


class NodeInspector(Inspector):  # type: ignore[misc]  # flower is untyped
    """Flower's memory of what nodes answer, without texts."""

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        super()._on_update(workername, method, report_without_texts(method, response))
