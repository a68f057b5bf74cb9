"""Aliases move by compare-and-set, with their history; versions are numbered without a gap, also in a crowd."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from ondol.contract.errors import AliasMoved, InvalidPayload, ModelNotFound, VersionInUse
from ondol.contract.ids import new_id
from ondol.contract.model_ref import parse_model_ref
from ondol.sql import migrate
from ondol.sql.aliases import Expected
from ondol.sql.database import Database
from ondol.sql.models import Published
from ondol.sql.unit_of_work import UnitOfWork

pytestmark = pytest.mark.integration

NAME = "sentiment"
NUM_AT_ONCE = 8


class House:
    """A project's models, as two processes see them."""

    def __init__(self, url: str) -> None:
        migrate.upgrade(url)
        self.database, self.other = Database(url), Database(url)
        self.project_id = self.database.write(lambda uow: uow.keys.ensure_project())

    def publish(
        self,
        *,
        name: str = NAME,
        alias: str | None = None,
        alias_seen: str | None = None,
        database: Database | None = None,
        digest: str | None = None,
    ) -> Published:
        return (database or self.database).write(
            lambda uow: uow.models.publish(
                project_id=self.project_id,
                name=name,
                task="embedding",
                manifest_digest=digest or new_id("digest"),
                size_bytes=1,
                spec={},
                job_id=None,
                attempt=None,
                lineage={},
                alias=alias,
                alias_seen=alias_seen,
            )
        )

    def set_alias(self, number: int, *, expected: Expected = "any", alias: str = "production") -> bool:
        return self.database.write(
            lambda uow: uow.models.set_alias(self.project_id, NAME, alias, number, expected=expected, reason="test")
        ).is_moved

    def target(self, alias: str = "production") -> str | None:
        return self.database.read(lambda uow: uow.models.alias_target(self.project_id, NAME, alias))

    def history(self, alias: str | None = None) -> list[tuple[str, int | None, int | None, str]]:
        """(alias, version, version before, reason) of each move, newest first."""
        moves = self.database.read(lambda uow: uow.models.alias_history(self.project_id, NAME, alias))
        return [(move.alias, move.number, move.previous_number, move.reason) for move in moves]

    def resolve(self, ref: str) -> str:
        return self.database.read(lambda uow: uow.models.resolve(parse_model_ref(ref), self.project_id)).ref


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    made = House(database_url)
    yield made
    made.database.close()
    made.other.close()


def at_once(work: Callable[[int], Published]) -> list[Published]:
    """Outcomes of as many threads that begin together."""
    together = threading.Barrier(NUM_AT_ONCE)

    def run(i: int) -> Published:
        together.wait()
        return work(i)

    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        return list(threads.map(run, range(NUM_AT_ONCE)))


def test_an_alias_is_moved_only_from_where_it_is_expected_and_every_move_is_kept(house: House) -> None:
    versions = [house.publish().version for _ in range(3)]
    with pytest.raises(AliasMoved, match="does not exist") as never_there:
        house.set_alias(1, expected=2)
    assert never_there.value.points_to is None
    assert house.set_alias(1, expected=None)
    with pytest.raises(AliasMoved, match="points to version 1"):
        house.set_alias(2, expected=None)
    assert house.set_alias(2, expected=1)
    with pytest.raises(AliasMoved) as overtaken:
        house.set_alias(3, expected=1)
    assert (overtaken.value.code, overtaken.value.points_to) == ("alias_moved", 2)
    assert not house.set_alias(2, expected=1), "a repeated request is answered like the first, and moves nothing"
    assert house.set_alias(1)
    assert house.target() == versions[0].id
    assert house.resolve(f"{NAME}@production") == house.resolve(NAME) == f"{NAME}:1"
    assert house.history("production") == [
        ("production", 1, 2, "test"),
        ("production", 2, 1, "test"),
        ("production", 1, None, "test"),
    ]
    assert house.history()[-1] == ("default", 1, None, "first version")


def test_a_deleted_alias_keeps_its_history_and_may_come_back(house: House) -> None:
    house.publish()
    house.set_alias(1)

    def delete(expected: Expected) -> None:
        house.database.write(
            lambda uow: uow.models.delete_alias(house.project_id, NAME, "production", expected=expected, reason="gone")
        )

    with pytest.raises(AliasMoved):
        delete(7)
    delete(1)
    with pytest.raises(ModelNotFound, match="production"):
        delete("any")
    with pytest.raises(ModelNotFound):
        house.resolve(f"{NAME}@production")
    assert house.target() is None
    assert house.set_alias(1, expected=None)
    assert [move[:3] for move in house.history("production")] == [
        ("production", 1, None),
        ("production", None, 1),
        ("production", 1, None),
    ]


def test_what_is_not_there_cannot_be_named(house: House) -> None:
    with pytest.raises(ModelNotFound, match="no model"):
        house.set_alias(1)
    house.publish()
    with pytest.raises(ModelNotFound, match=f"{NAME}:2"):
        house.set_alias(2)
    with pytest.raises(InvalidPayload):
        house.set_alias(1, alias="Not A Name")


@pytest.mark.parametrize(("alias", "reason", "param"), [("a\0b", "", "alias"), ("production", "a\0b", "reason")])
def test_text_that_no_database_takes_is_refused(house: House, alias: str, reason: str, param: str) -> None:
    house.publish(alias="production")
    changes: tuple[Callable[[UnitOfWork], object], ...] = (
        lambda uow: uow.models.set_alias(house.project_id, NAME, alias, 1, reason=reason),
        lambda uow: uow.models.delete_alias(house.project_id, NAME, alias, reason=reason),
    )
    for change in changes:
        with pytest.raises(InvalidPayload) as refused:
            house.database.write(change)
        assert refused.value.param == param


def test_a_version_is_deleted_once_no_alias_points_to_it_and_its_number_stays_taken(house: House) -> None:
    first, second = house.publish().version, house.publish().version

    def delete(number: int) -> None:
        house.database.write(lambda uow: uow.models.delete_version(house.project_id, NAME, number))

    with pytest.raises(VersionInUse, match="default"):
        delete(1)
    delete(2)
    for act in (lambda: delete(2), lambda: house.resolve(f"{NAME}:2"), lambda: house.set_alias(2)):
        with pytest.raises(ModelNotFound):
            act()
    listed = house.database.read(lambda uow: uow.models.list_versions(house.project_id, NAME))
    assert [version.id for version in listed] == [first.id]
    assert house.database.read(lambda uow: uow.models.by_id(second.id)) is not None, "accepted jobs finish with it"
    assert house.publish().version.number == 3


def test_a_publish_moves_the_alias_only_if_nobody_else_has(house: House) -> None:
    first = house.publish(alias="production", alias_seen=None)
    assert (first.is_alias_moved, first.alias_points_to) == (True, f"{NAME}:1")
    second = house.publish(alias="production", alias_seen=first.version.id)
    assert (second.is_alias_moved, second.alias_points_to) == (True, f"{NAME}:2")
    late = house.publish(alias="production", alias_seen=first.version.id)
    assert (late.version.number, late.is_alias_moved, late.alias_points_to) == (3, False, f"{NAME}:2")
    plain = house.publish()
    assert (plain.alias, plain.is_alias_moved, plain.alias_points_to) == (None, False, None)
    assert first.version.aliases == ("default", "production")


def test_the_first_version_takes_the_alias_default_when_it_is_the_one_asked_for(house: House) -> None:
    found = house.publish(alias="default", alias_seen=None)
    assert (found.is_alias_moved, found.alias_points_to) == (True, f"{NAME}:1")
    assert len(house.history("default")) == 1


def test_models_published_at_once_are_numbered_without_a_gap(house: House) -> None:
    sides = (house.database, house.other)
    found = at_once(lambda i: house.publish(alias="production", alias_seen=None, database=sides[i % 2]))
    assert sorted(one.version.number for one in found) == list(range(1, NUM_AT_ONCE + 1))
    assert len({one.version.model_id for one in found}) == 1, "all of them are versions of one model"
    [winner] = [one for one in found if one.is_alias_moved]
    assert house.target() == winner.version.id
    assert {one.alias_points_to for one in found} == {winner.version.ref}
    assert house.resolve(NAME) == f"{NAME}:1"


def test_of_moves_at_once_one_wins_and_the_others_are_told(house: House) -> None:
    for _ in range(NUM_AT_ONCE + 1):
        house.publish()
    house.set_alias(1)

    def move(i: int) -> int | None:
        side = house.database if i % 2 else house.other
        try:
            side.write(lambda uow: uow.models.set_alias(house.project_id, NAME, "production", i + 2, expected=1))
        except AliasMoved as refused:
            return refused.points_to
        return i + 2

    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        seen = set(threads.map(move, range(NUM_AT_ONCE)))
    assert len(seen) == 1, "everybody names the same winner"
    assert [entry[2] for entry in house.history("production")] == [1, None]


def test_listing_models_costs_the_same_however_many_there_are(house: House) -> None:
    def num_statements() -> int:
        seen: list[str] = []

        def count(_conn: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement)

        def read(uow: UnitOfWork) -> int:
            event.listen(uow.conn, "before_cursor_execute", count)
            return len(uow.models.list_versions(house.project_id))

        assert house.database.read(read) > 0
        return len(seen)

    house.publish()
    few = num_statements()
    for i in range(6):
        house.publish(name=f"other-{i % 3}")
    assert num_statements() == few == 2


def test_moves_are_found_by_time_with_what_they_left(house: House) -> None:
    old, new = house.publish(digest="a" * 64).version, house.publish(digest="b" * 64).version
    house.set_alias(1)
    before = house.database.read(lambda uow: uow.models.alias_history(house.project_id, NAME, limit=1))[0].created_at
    house.set_alias(2)
    [move] = house.database.read(lambda uow: uow.models.alias_moves_since(before))
    assert (move.model, move.alias, move.version_id) == (NAME, "production", new.id)
    assert (move.manifest_digest, move.previous_digest) == (new.manifest_digest, old.manifest_digest)
    assert house.database.read(lambda uow: uow.models.is_aliased(old.manifest_digest)), "default still names it"
    assert not house.database.read(lambda uow: uow.models.is_aliased("c" * 64))
