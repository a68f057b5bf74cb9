"""The mark of a database that was moved elsewhere: it can be read, and every write is refused by the database itself.

Triggers, not a flag that programs look at: whoever is still connected, of any release, cannot write past them. The
error is of the kind that means an outage, so that programs wait and clients try again: on SQLite a path that is none
(RAISE would look like a broken constraint, as a task's second job does), on PostgreSQL a server that takes nobody.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ondol.sql.tables import metadata

MOVED = "ondol_moved"
"""Stands in the database's error."""
_MESSAGE = f"{MOVED}: this database was moved, set ONDOL_DATABASE_URL to the new one"
_FUNCTION = "ondol_refuse_write"
_EVENTS = ("INSERT", "UPDATE", "DELETE")


def mark_moved(conn: Connection) -> None:
    """Refuse writes from the commit of this transaction on; the caller keeps others from writing until then."""
    for statement in _marks(conn.dialect.name == "sqlite"):
        conn.exec_driver_sql(statement)


def unmark_moved(conn: Connection) -> int:
    """Take writes again; how many tables were marked."""
    is_sqlite = conn.dialect.name == "sqlite"
    found = _marked_tables(conn)
    for table in found:
        for event in _EVENTS if is_sqlite else ("",):
            on = "" if is_sqlite else f' ON "{table}"'
            conn.exec_driver_sql(f'DROP TRIGGER "{_name(table, event)}"{on}')
    if found and not is_sqlite:
        conn.exec_driver_sql(f"DROP FUNCTION {_FUNCTION}()")
    return len(found)


def is_moved(conn: Connection) -> bool:
    """Whether writes are refused."""
    return bool(_marked_tables(conn))


def _marks(is_sqlite: bool) -> list[str]:
    tables = [table.name for table in metadata.sorted_tables]
    if is_sqlite:
        refusal = f"BEGIN SELECT json_extract('{{}}', '{_MESSAGE}'); END"
        return [
            f'CREATE TRIGGER "{_name(table, event)}" BEFORE {event} ON "{table}" {refusal}'
            for table in tables
            for event in _EVENTS
        ]
    body = f"BEGIN RAISE EXCEPTION '{_MESSAGE}' USING ERRCODE = 'cannot_connect_now'; END"
    function = f"CREATE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
    events = " OR ".join(_EVENTS)
    action = f"FOR EACH STATEMENT EXECUTE FUNCTION {_FUNCTION}()"
    return [function] + [f'CREATE TRIGGER "{_name(table)}" BEFORE {events} ON "{table}" {action}' for table in tables]


def _name(table: str, event: str = "") -> str:
    return "_".join(part for part in (MOVED, table, event.lower()) if part)


def _marked_tables(conn: Connection) -> list[str]:
    if conn.dialect.name == "sqlite":
        query = "SELECT DISTINCT tbl_name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'ondol_moved_%'"
    else:
        query = (
            "SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE t.tgname LIKE 'ondol_moved_%' AND n.nspname = current_schema()"
        )
    return sorted(conn.execute(sa.text(query)).scalars())
