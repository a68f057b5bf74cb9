"""Rows and what waits for them. Shapes: `T` tokens of a row, `H` length of a vector.

A `Work` is everything that one job's attempt or one call asks of the device; its rows may travel in many batches,
together with the rows of others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ondol.contract.errors import DeadlineExceeded, OndolError
from ondol.contract.states import Priority

CLASS_GRACE_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 1.0, Priority.BULK: 5.0}
"""How long rows of a class stand behind those of the classes before it without a claim to a turn."""
_RANKS = {priority: rank for rank, priority in enumerate(Priority)}

IntArray = np.ndarray[Any, np.dtype[np.int32]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]
DEFAULT_ENGINE = "torch"


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A version's files in one dtype, as the device process knows them.

    `pin` keeps the files at `path` on this host for as long as any row or work names them.
    """

    key: str
    ref: str
    path: str
    dtype: str
    pin: object = field(default=None, compare=False, repr=False)

    def as_header(self) -> dict[str, str]:
        """The form in which it travels to the device process."""
        return {"key": self.key, "ref": self.ref, "path": self.path, "dtype": self.dtype}


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Rows with equal keys may share a batch."""

    model: DeviceModel
    task: str
    pooling: tuple[str, ...] | None
    layer: int

    def __hash__(self) -> int:
        """Of what nearly always tells keys apart: taken for every work that is queued."""
        return hash((self.model.key, self.task, self.pooling, self.layer))

    @property
    def is_by_token(self) -> bool:
        """Whether a row's output is one vector a token, [T, H], and not one a row, [H]."""
        return self.task == "token-classification" or self.pooling == ("none",)

    def spec(self) -> dict[str, Any]:
        """What the device process is to do with the rows."""
        return {"task": self.task, "pooling": list(self.pooling) if self.pooling else None, "layer": self.layer}


@dataclass(slots=True, eq=False)
class Row:
    """What goes through the model: token ids [T], and which of the work's outputs it becomes.

    `type_ids` [T] say which text of a pair a token belongs to; None: zeros.
    """

    ids: IntArray
    work: Work
    index: int
    skip: int = 0
    type_ids: IntArray | None = None
    num_losses: int = 0
    is_suspect: bool = False
    twins: list[Row] = field(default_factory=list)
    """Rows that ask for the very same and get this one's output (`workers.twins`)."""
    is_twin: bool = False
    is_in_line: bool = False
    asked: Hashable = None
    """Under what others find this row to share its computation; None: they cannot."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.ids)

    def settle(self, output: FloatArray | None, error: OndolError | None) -> None:
        """Record the output or error here and at the twins; nobody may write to the output."""
        self.work.settle(self, output, error)
        for twin in self.twins:
            twin.work.settle(twin, output, error)

    def count_loss(self) -> None:
        """The device process died while it ran this row alone: its twins have lost as much."""
        self.num_losses += 1
        self.is_suspect = True
        for row in (self, *self.twins):
            row.num_losses = self.num_losses
            row.work.num_new_losses = max(row.work.num_new_losses, self.num_losses)


@dataclass(slots=True, eq=False)
class Work:
    """All rows of one attempt or call.

    `on_done` is called once, on the thread that settles the last row or strikes the work out; `needs_lease`: the work
    belongs to a claimed job and is worth nothing without the session's lease (a call is answered all the same).
    """

    id: str
    key: BatchKey
    priority: Priority
    on_done: Callable[[Work], None] | None = None
    deadline_at: float | None = None
    is_alone: bool = False
    needs_lease: bool = True
    rows: list[Row] = field(default_factory=list)
    outputs: list[FloatArray | None] = field(default_factory=list)
    errors: dict[int, OndolError] = field(default_factory=dict)
    forward_s: float = 0.0
    load_s: float = 0.0
    engines: set[str] = field(default_factory=set)
    """What computed its rows so far."""
    num_new_losses: int = 0
    enqueued_at: float = field(default_factory=time.monotonic)
    virtual_start: float = field(init=False)
    """Arrival plus the grace of the class."""
    rank: int = field(init=False)
    """0: the class that goes first."""
    started_at: float | None = None
    is_struck: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _num_open: int = 0
    _is_over: bool = False
    _done: threading.Event | None = None

    def __post_init__(self) -> None:
        self.virtual_start = self.enqueued_at + CLASS_GRACE_S[self.priority]
        self.rank = _RANKS[self.priority]

    @property
    def engine(self) -> str:
        """The engine as results name it; two with a plus where the model went over to another one meanwhile."""
        return "+".join(sorted(self.engines)) or DEFAULT_ENGINE

    @property
    def is_over(self) -> bool:
        """Whether its last row is settled, or it is struck out."""
        return self._is_over

    @property
    def done(self) -> threading.Event:
        """Set once the work is over. Made when somebody first asks: most works are over before that."""
        with self._lock:
            if self._done is None:
                self._done = threading.Event()
                if self._is_over:
                    self._done.set()
            return self._done

    def add_rows(self, rows: list[Row]) -> None:
        """Set the rows; each gets an output slot. A work without rows is done at once, and tells nobody."""
        self.rows = rows
        self.outputs = [None] * len(rows)
        self._num_open = len(rows)
        if not rows:
            self._is_over = True

    def settle(self, row: Row, output: FloatArray | None, error: OndolError | None) -> None:
        """Record a row's output or error; the first one counts. Thread-safe."""
        with self._lock:
            if self._is_over or self.outputs[row.index] is not None or row.index in self.errors:
                return
            if error is not None:
                self.errors[row.index] = error
            else:
                self.outputs[row.index] = output
            self._num_open -= 1
            if self._num_open:
                return
            self._is_over = True
        self._finish()

    def strike(self) -> None:
        """Nobody wants this any more: its rows are dropped when packing; waiting threads go on at once."""
        with self._lock:
            if self._is_over:
                return
            self.is_struck = self._is_over = True
        self._finish()

    def _finish(self) -> None:
        if self._done is not None:
            self._done.set()
        if self.on_done is not None:
            self.on_done(self)


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that go through the model together."""

    key: BatchKey
    rows: list[Row]
    is_exclusive: bool = False
    """Nothing else may be on the device meanwhile: a suspect, or a job that must run alone."""
    formed_at: float = field(default_factory=time.monotonic)
    release: str = "alone"
    """Why it was closed: `full` (the next row did not fit), `drained` (no row of the key was left), `alone`."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return sum(row.num_tokens for row in self.rows)


def is_wanted(row: Row) -> bool:
    """Whether anybody still waits for the row; one whose deadline has passed is settled with that error."""
    work = row.work
    if work.is_struck:
        return False
    if work.deadline_at is not None and time.time() > work.deadline_at:
        work.settle(row, None, DeadlineExceeded("the deadline passed before the text reached the device"))
        return False
    return True
