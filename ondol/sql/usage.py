"""Usage of calls: calls, inputs and tokens by project, model and day, added up in place; jobs bear their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ondol.sql.tables import usage

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

_DAY_S = 86_400


class UsageRepository:
    """What calls used, added by the api every second. A job's tokens stand in its attempts, and go with the job."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def add(self, *, project_id: str, model_ref: str, num_calls: int, num_inputs: int, num_tokens: int) -> None:
        """Add to today's row (UTC day)."""
        insert = sqlite.insert if self._uow.is_sqlite else postgresql.insert
        day = int(self._uow.now // _DAY_S)
        statement = insert(usage).values(
            project_id=project_id,
            model_ref=model_ref,
            day=day,
            num_calls=num_calls,
            num_inputs=num_inputs,
            num_tokens=num_tokens,
        )
        self._conn.execute(
            statement.on_conflict_do_update(
                index_elements=["project_id", "model_ref", "day"],
                set_={
                    "num_calls": usage.c.num_calls + num_calls,
                    "num_inputs": usage.c.num_inputs + num_inputs,
                    "num_tokens": usage.c.num_tokens + num_tokens,
                },
            )
        )

    def totals(self, project_id: str) -> dict[str, tuple[int, int, int]]:
        """(calls, inputs, tokens) by model reference."""
        query = (
            sa.select(
                usage.c.model_ref,
                sa.func.sum(usage.c.num_calls),
                sa.func.sum(usage.c.num_inputs),
                sa.func.sum(usage.c.num_tokens),
            )
            .where(usage.c.project_id == project_id)
            .group_by(usage.c.model_ref)
        )
        return {ref: (int(calls), int(inputs), int(tokens)) for ref, calls, inputs, tokens in self._conn.execute(query)}
