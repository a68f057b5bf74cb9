"""A dump of PostgreSQL played over a connection that is in a transaction, so that it is there whole or not at all.

pg_restore turns the dump into a script, SQL with the rows of COPY between; it is read as it comes and never held.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psycopg

_COPY = re.compile(rb"COPY .* FROM stdin;\n")
_END_OF_ROWS = b"\\.\n"
_FOR_PSQL = (b"\\restrict ", b"\\unrestrict ")
"""What newer releases write around a script to keep psql from following commands in it; we follow none."""
_END_LIMIT_S = 10


class ScriptBroken(Exception):
    """pg_restore has failed, or its script has ended in the middle."""


def play(dump: Path, pg_restore: str, connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Run all that the dump makes, in the connection's transaction, which is left open; its settings are as before.

    ScriptBroken or psycopg.Error: what was done must be rolled back.
    """
    with _script(dump, pg_restore) as lines, connection.cursor() as cursor:
        statements: list[bytes] = []
        for line in lines:
            if _COPY.fullmatch(line):
                _run(statements, cursor)
                _copy(line, lines, cursor)
            elif not line.startswith(_FOR_PSQL):
                statements.append(line)
        _run(statements, cursor)
        cursor.execute("RESET ALL")


def _run(statements: list[bytes], cursor: psycopg.Cursor[tuple[object, ...]]) -> None:
    if statements:
        cursor.execute(b"".join(statements))
        statements.clear()


def _copy(command: bytes, lines: Iterator[bytes], cursor: psycopg.Cursor[tuple[object, ...]]) -> None:
    with cursor.copy(command) as rows:
        for line in lines:
            if line == _END_OF_ROWS:
                return
            rows.write(line)
        raise ScriptBroken(f"its script ends in the rows of {command.decode(errors='replace').strip()}")


@contextmanager
def _script(dump: Path, pg_restore: str) -> Iterator[Iterator[bytes]]:
    """The lines of the script. At the end ScriptBroken if they are not all; however it ends, the program has too."""
    with tempfile.TemporaryFile() as errors:
        command = [pg_restore, "--no-owner", "--file", "-", str(dump)]
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert running.stdout is not None
        with running.stdout as lines:
            try:
                yield iter(lines)
                code = running.wait(_END_LIMIT_S)
            finally:
                running.kill()
                running.wait()
        if code != 0:
            raise ScriptBroken(_said(errors) or f"pg_restore ended with {code}")


def _said(errors: IO[bytes]) -> str:
    errors.seek(0)
    return " ".join(errors.read().decode(errors="replace").split())[:500]
