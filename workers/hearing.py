"""Whether a Celery node hears what is rung for it: shared by its consumer, its handlers and the watch over them."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Hearing:
    """Thread-safe. The consumer asks for `take_wish`, handlers say `heard`."""

    def __init__(self) -> None:
        self._num_heard = 0
        self._lock = threading.Lock()
        self._wish = threading.Event()
        self.cut: Callable[[], object] = lambda: None
        """Ends every wait of the consumer for an answer; set by the consumer, whenever it has connected."""

    @property
    def num_heard(self) -> int:
        """Messages that came so far."""
        return self._num_heard

    def heard(self) -> None:
        """A message came."""
        with self._lock:
            self._num_heard += 1

    def connect_anew(self) -> None:
        """Have the consumer drop its connection and make a new one; returns at once."""
        self._wish.set()
        self.cut()

    def take_wish(self) -> bool:
        """Whether the consumer should connect anew; asked for once, answered once."""
        is_wanted = self._wish.is_set()
        self._wish.clear()
        return is_wanted
