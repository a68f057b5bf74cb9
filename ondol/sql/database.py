"""A database, SQLite or PostgreSQL: reads in short transactions, writes through one grouping writer a process.

The writer takes all units of work that wait and runs them in one transaction, so a hundred callers pay for one commit;
when one of them fails it runs them again, with a savepoint each. SQLite: every writing transaction begins IMMEDIATE,
WAL, `synchronous=FULL`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.many_rows import dump_json
from ondol.sql.skew import ClockSkew
from ondol.sql.unit_of_work import UnitOfWork

T = TypeVar("T")
Work = Callable[[UnitOfWork], T]

MAX_GROUP = 128
_RETRY_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5)
_PG_RETRYABLE = {"40001", "40P01", "55P03"}
# Frozen in the middle of a transaction, a process would hold its locks, and the repairs behind them, for ever; behind a
# half-open link it would wait for ever itself. So the server ends idle transactions, and the kernel dead connections.
_PG_LIMITS = "SET idle_in_transaction_session_timeout = 5000; SET lock_timeout = 5000; SET statement_timeout = 60000"
# What the writer runs is answered by indexes. A plan that is made while a table is nearly empty reads the whole of it,
# and is kept for the prepared statement when the table has grown.
_PG_WRITER = "; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"
_PG_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 12_000,
}
_SQLITE_BUSY_S = 5

log = structlog.get_logger(__name__)


class _SpoiledError(Exception):
    """One of the units of a group has failed; nothing of the group is recorded."""


@dataclass(slots=True)
class _Item:
    work: Work[Any]
    future: Future[Any] = field(default_factory=Future)


class Database:
    """One process's access to the database. Thread-safe; `close()` waits for the writer.

    Every library error leaves as DatabaseUnavailable (a retry can help) or as what it is (our mistake).
    """

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.clock = ClockSkew()
        if self.is_sqlite:
            self.clock.is_one_with_the_database()
        self._read_engine = _make_engine(url, pool_size=pool_size, is_writer=False)
        # An engine of its own on PostgreSQL too: readers that use up the pool must not keep a lease from being renewed.
        self._write_engine = _make_engine(url, pool_size=2, is_writer=True)
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._is_committing = False
        """Of the writer's thread: whether what the current transaction did may be there from now on."""
        self._closed = False
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write_loop, name="sql-writer", daemon=True)
        self._writer.start()

    def read(self, work: Work[T]) -> T:
        """What `work` returns, run in a read transaction of its own on the calling thread."""
        try:
            with self._read_engine.begin() as conn:
                return work(UnitOfWork(conn, is_sqlite=self.is_sqlite, clock=self.clock))
        except (DBAPIError, PoolTimeout) as exc:
            raise _translate(exc) from exc

    def submit(self, work: Work[T]) -> Future[T]:
        """Hand `work` to the writer; the future is done after the commit. `work` may run more than once."""
        item = _Item(work)
        with self._lock:  # nothing is queued behind the end of the queue, where nobody would answer it
            if self._closed:
                raise DatabaseUnavailable("the database is closed")
            self._queue.put(item)
        return item.future

    def write(self, work: Work[T]) -> T:
        """What `work` returned, once it is committed; blocks. Not from inside a unit of work: that waits for itself."""
        assert threading.current_thread() is not self._writer
        return self.submit(work).result()

    def ping(self) -> None:
        """Return if the database answers, else DatabaseUnavailable."""
        self.read(lambda uow: uow.conn.execute(sa.text("SELECT 1")).scalar())

    def close(self) -> None:
        """Finish the writes that were handed over, then let go of all connections."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._writer.join(timeout=30)
        self._read_engine.dispose()
        self._write_engine.dispose()

    def _write_loop(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            group, is_last = [item], False
            while len(group) < MAX_GROUP:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    is_last = True
                    break
                group.append(following)
            self._run_group(group)
            if is_last:
                return

    def _run_group(self, group: Sequence[_Item], *, is_retry: bool = False, may_be_done: bool = False) -> None:
        for pause_s in (*_RETRY_PAUSES_S, None):
            try:
                outcomes, hooks = self._attempt(group, is_retry=is_retry)
            except PoolTimeout as exc:
                _fail_all(group, exc, may_be_done=may_be_done)
                return
            except DBAPIError as exc:
                is_retry = True
                may_be_done = may_be_done or (self._is_committing and exc.connection_invalidated)
                if pause_s is not None and _may_retry(exc):
                    threading.Event().wait(pause_s)
                    continue
                if len(group) > 1 and not _is_unavailable(exc):
                    for item in group:
                        self._run_group([item], is_retry=True, may_be_done=may_be_done)
                    return
                _fail_all(group, exc, may_be_done=may_be_done)
                return
            except Exception as exc:  # noqa: BLE001 - the writer's edge: every waiting caller is answered
                _fail_all(group, exc, may_be_done=may_be_done)
                return
            _answer(group, outcomes, hooks)
            return

    def _attempt(
        self, group: Sequence[_Item], *, is_retry: bool
    ) -> tuple[list[tuple[Any, Exception | None]], list[Callable[[], None]]]:
        try:
            return self._run_all(group, is_retry=is_retry, is_guarded=False)
        except _SpoiledError:  # by one unit, and rolled back: it is found out behind savepoints
            return self._run_all(group, is_retry=is_retry, is_guarded=True)

    def _run_all(
        self, group: Sequence[_Item], *, is_retry: bool, is_guarded: bool
    ) -> tuple[list[tuple[Any, Exception | None]], list[Callable[[], None]]]:
        """One transaction. Unguarded, the error of one of several units is a _SpoiledError; guarded, it is its own."""
        outcomes: list[tuple[Any, Exception | None]] = []
        hooks: list[Callable[[], None]] = []
        is_single = len(group) == 1
        self._is_committing = False
        with self._write_engine.connect() as conn, conn.begin() as transaction:
            for item in group:
                uow = UnitOfWork(conn, is_sqlite=self.is_sqlite, is_retry=is_retry, clock=self.clock)
                try:
                    value = self._run_one(conn, item, uow, is_guarded=is_guarded)
                except DBAPIError as exc:
                    if _may_retry(exc) or _is_unavailable(exc) or is_single:
                        raise
                    if not is_guarded:
                        raise _SpoiledError from exc
                    outcomes.append((None, exc))
                    continue
                except Exception as exc:  # one unit's error is its caller's, not the group's
                    if is_single:
                        transaction.rollback()
                    elif not is_guarded:
                        raise _SpoiledError from exc
                    outcomes.append((None, exc))
                    continue
                outcomes.append((value, None))
                hooks.extend(uow.hooks)
            self._is_committing = True
        return outcomes, hooks

    @staticmethod
    def _run_one(conn: Connection, item: _Item, uow: UnitOfWork, *, is_guarded: bool) -> Any:
        if not is_guarded:
            return item.work(uow)
        with conn.begin_nested():
            return item.work(uow)


def _answer(
    group: Sequence[_Item], outcomes: Sequence[tuple[Any, Exception | None]], hooks: Sequence[Callable[[], None]]
) -> None:
    for hook in hooks:
        try:
            hook()
        except Exception:  # a hook is a hint sent after the commit; its failure must not undo an answer
            log.exception("sql.hook_failed")
    for item, (value, error) in zip(group, outcomes, strict=True):
        with suppress(InvalidStateError):  # the caller may have cancelled its future
            if error is None:
                item.future.set_result(value)
            else:
                item.future.set_exception(error)


def _fail_all(group: Sequence[_Item], exc: Exception, *, may_be_done: bool) -> None:
    for item in group:
        error = _translate(exc) if isinstance(exc, DBAPIError | PoolTimeout) else exc
        if isinstance(error, DatabaseUnavailable):  # one object a caller: callers write on theirs
            error.may_be_done = may_be_done
        with suppress(InvalidStateError):  # the caller may have cancelled its future
            item.future.set_exception(error)


def plain_engine(url: str) -> Engine:
    """An engine for migrations, copies and repairs: a connection at a time, kept by nobody, without a session's limits.

    A server that does not answer is given up as by a Database; whoever runs statements translates the errors.
    """
    connect_args = {} if url.startswith("sqlite") else _PG_CONNECT
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect_args, hide_parameters=True)
    event.listen(engine, "handle_error", _quote_no_row)
    return engine


def _make_engine(url: str, *, pool_size: int, is_writer: bool) -> Engine:
    options: dict[str, Any] = {"json_serializer": dump_json, "pool_pre_ping": not url.startswith("sqlite")}
    options["hide_parameters"] = True  # errors reach the log, and parameters are texts, results and keys
    if url.startswith("sqlite"):
        options |= {"connect_args": {"timeout": _SQLITE_BUSY_S, "check_same_thread": False}, "pool_size": pool_size}
        engine = sa.create_engine(url, poolclass=sa.pool.QueuePool, **options)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate if is_writer else _begin_deferred)
        return engine
    options |= {"connect_args": _PG_CONNECT, "pool_size": pool_size, "max_overflow": 4, "pool_timeout": 10}
    engine = sa.create_engine(url, **options)
    event.listen(engine, "handle_error", _quote_no_row)
    settings = _PG_LIMITS + (_PG_WRITER if is_writer else "")
    event.listen(engine, "connect", lambda connection, _record: _set_up_postgresql(connection, settings))
    return engine


def _quote_no_row(context: ExceptionContext) -> None:
    """PostgreSQL's detail of a broken constraint is the whole row: of the error its first line has to do."""
    if not getattr(getattr(context.original_exception, "diag", None), "message_detail", None):
        return
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = (str(error.args[0]).splitlines()[0], *error.args[1:])


def _set_up_postgresql(dbapi_connection: Any, settings: str) -> None:
    dbapi_connection.autocommit = True
    dbapi_connection.execute(settings)
    dbapi_connection.autocommit = False


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_SQLITE_BUSY_S * 1000}"):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_deferred(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN")


def _may_retry(exc: DBAPIError) -> bool:
    if exc.connection_invalidated:
        return True
    if getattr(exc.orig, "sqlstate", None) in _PG_RETRYABLE:
        return True
    return "database is locked" in str(exc.orig)


def _is_unavailable(exc: DBAPIError) -> bool:
    return exc.connection_invalidated or isinstance(exc, OperationalError | InterfaceError)


def _translate(exc: DBAPIError | PoolTimeout) -> Exception:
    if isinstance(exc, PoolTimeout):
        return DatabaseUnavailable("all connections to the database are in use; try again")
    if _is_unavailable(exc):
        return DatabaseUnavailable(f"the database does not answer: {str(exc.orig).splitlines()[0][:200]}")
    return exc
