"""What is broken when: a list that one seed decides, whatever happens while it is carried out."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tests.chaos.world import API, LEADER_LEASE_S, LEASE_S, RECONCILERS, TRAINER, WORKERS, Size

REDIS, DATABASE, STORE, NOBODY = "redis", "database", "store", "nobody"
_PAUSE_S = (0.2, 2.2)


@dataclass(frozen=True, slots=True)
class FaultKind:
    """How often a fault is chosen, whom it meets, and how long it holds (seconds)."""

    weight: int
    targets: Sequence[str]
    hold_s: tuple[float, float] = (0.0, 0.0)
    only_on: str | None = None
    """The one database on which it can be done."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan, `at_s` seconds after its begin; `number` tells those of one plan apart."""

    number: int
    at_s: float
    kind: str
    target: str
    hold_s: float
    sign: int
    """1 or -1, for faults that have a direction."""


_PAST_LEASE_S = (LEASE_S + 1.0, LEASE_S + 3.0)
_PAST_LEADER_S = (LEADER_LEASE_S + 0.5, LEADER_LEASE_S + 2.5)

KINDS: dict[str, FaultKind] = {
    "kill_worker": FaultKind(6, WORKERS, (0.0, 2.0)),
    "freeze_worker": FaultKind(3, WORKERS, (0.3, 2.0)),
    "freeze_worker_past_lease": FaultKind(4, WORKERS, _PAST_LEASE_S),
    "kill_device": FaultKind(5, WORKERS),
    "freeze_device": FaultKind(2, WORKERS, (0.5, 3.0)),
    "second_holder": FaultKind(1, WORKERS),
    "zombie": FaultKind(5, (NOBODY,)),
    "kill_trainer": FaultKind(2, (TRAINER,), (0.0, 1.0)),
    "kill_training_child": FaultKind(2, (TRAINER,)),
    "freeze_trainer": FaultKind(1, (TRAINER,), _PAST_LEASE_S),
    "kill_api": FaultKind(2, (API,), (0.0, 1.0)),
    "freeze_api": FaultKind(2, (API,), (0.5, 3.0)),
    "kill_reconciler": FaultKind(2, RECONCILERS, (0.0, 2.0)),
    "freeze_reconciler": FaultKind(2, RECONCILERS, _PAST_LEADER_S),
    "flush_redis": FaultKind(3, (REDIS,)),
    "kill_redis": FaultKind(2, (REDIS,), (0.0, 3.0)),
    "pause_redis": FaultKind(2, (REDIS,), (0.5, 4.0)),
    "kick_redis_clients": FaultKind(2, (REDIS,)),
    "reset_redis_link": FaultKind(2, (REDIS,)),
    "stall_redis_link": FaultKind(2, (REDIS,), (0.5, 4.0)),
    "lock_database": FaultKind(3, (DATABASE,), (0.5, 4.0), only_on="sqlite"),
    "reset_database_link": FaultKind(3, (DATABASE,), only_on="postgresql"),
    "stall_database_link": FaultKind(2, (DATABASE,), (0.5, 3.0), only_on="postgresql"),
    "lose_commit": FaultKind(4, (DATABASE,), (0.0, 0.0), only_on="postgresql"),
    "stop_database": FaultKind(2, (DATABASE,), (0.5, 4.0), only_on="postgresql"),
    "crash_database": FaultKind(2, (DATABASE,), (0.0, 1.0), only_on="postgresql"),
    "skew_clock": FaultKind(2, WORKERS, (6.0, 14.0), only_on="postgresql"),
    "read_only_store": FaultKind(2, (STORE,), (1.0, 5.0)),
    "fill_disk": FaultKind(3, (TRAINER, API, *WORKERS), (1.0, 4.0)),
}


def make_plan(rng: random.Random, *, seconds: float, size: Size, kinds: Collection[str] = ()) -> list[Fault]:
    """Faults over so many seconds; `kinds` names those that may be chosen, empty: all that can be done here.

    ValueError for a kind that is not known or cannot be done on this database.
    """
    database = "postgresql" if size.is_postgresql else "sqlite"
    possible = {name: kind for name, kind in KINDS.items() if kind.only_on in (None, database)}
    if not size.has_trainer:
        possible = {name: kind for name, kind in possible.items() if kind.targets != (TRAINER,)}
    unknown = sorted(set(kinds) - possible.keys())
    if unknown:
        raise ValueError(f"no fault {', '.join(unknown)} on {database}; there are: {', '.join(possible)}")
    chosen = {name: kind for name, kind in possible.items() if not kinds or name in kinds}
    plan: list[Fault] = []
    at_s = rng.uniform(*_PAUSE_S)
    while at_s < seconds:
        [name] = rng.choices(list(chosen), [kind.weight for kind in chosen.values()])
        kind = chosen[name]
        targets = [one for one in kind.targets if one != TRAINER or size.has_trainer]
        targets = [one for one in targets if one not in RECONCILERS[size.num_reconcilers :]]
        fault = Fault(len(plan), at_s, name, rng.choice(targets), rng.uniform(*kind.hold_s), rng.choice((1, -1)))
        plan.append(fault)
        at_s += rng.uniform(*_PAUSE_S)
    return plan
