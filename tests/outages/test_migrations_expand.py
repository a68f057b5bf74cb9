"""Migrations only add, so that processes of the release before go on: docs/decisions/0018-rolling-upgrades.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondol.sql import migrate

pytestmark = pytest.mark.unit

VERSIONS = Path(migrate.__file__).parent / "migrations" / "versions"
FIRST_HELD = "0007"
"""Those before were made when no release was out."""
ALWAYS_FINE = frozenset({"create_table", "create_index", "drop_index", "f", "get_bind"})
SAYS_SO = "contracts"


def held_migrations() -> list[Path]:
    found = sorted(path for path in VERSIONS.glob("[0-9]*.py") if path.name[:4] >= FIRST_HELD)
    assert found
    return found


@pytest.mark.parametrize("path", held_migrations(), ids=lambda path: path.stem)
def test_a_migration_adds_or_says_what_it_takes_away(path: Path) -> None:
    assert not contractions(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("operation", "is_refused"),
    [
        ('op.add_column("jobs", sa.Column("x", sa.Text(), nullable=True))', False),
        ('op.add_column("jobs", sa.Column("x", sa.Double(), nullable=False, server_default="1"))', False),
        ('op.add_column("jobs", sa.Column("x", sa.Double(), nullable=False))', True),
        ('op.drop_column("jobs", "x")', True),
        ('op.drop_table("jobs")', True),
        ('op.alter_column("jobs", "x", nullable=False)', True),
        ('op.create_unique_constraint("u", "jobs", ["x"])', True),
        ('op.create_index("i", "jobs", ["x"], unique=True)', True),
        ('op.execute("DROP TABLE jobs")', True),
        ('with op.batch_alter_table("jobs") as batch:\n        batch.drop_column("x")', True),
        ('with op.batch_alter_table("jobs") as batch:\n        batch.add_column(sa.Column("x", sa.Text()))', False),
    ],
)
def test_what_contracts_is_found(operation: str, is_refused: bool) -> None:
    source = f"def upgrade():\n    {operation}\n"
    assert bool(contractions(source)) == is_refused
    assert not contractions(f'{SAYS_SO} = "x has not been read since the release before"\n{source}')


@pytest.mark.parametrize("path", held_migrations(), ids=lambda path: path.stem)
def test_an_index_of_a_table_in_use_is_built_beside_its_writers(path: Path) -> None:
    assert not blocking_indexes(path.read_text(encoding="utf-8"))


def test_what_keeps_writers_out_is_found() -> None:
    new = 'op.create_table("a", sa.Column("x", sa.Text()))\n    op.create_index("i", "a", ["x"])'
    assert not blocking_indexes(f"def upgrade():\n    {new}\n    build_indexes(NewIndex('j', 'jobs', ('x',)))\n")
    assert blocking_indexes('def upgrade():\n    op.create_index("i", "jobs", ["x"])\n')
    in_batch = 'with op.batch_alter_table("jobs") as batch:\n        batch.create_index("i", ["x"])'
    assert blocking_indexes(f"def upgrade():\n    {in_batch}\n")


def blocking_indexes(source: str) -> list[str]:
    """Calls that index a table which the migration does not make itself: on PostgreSQL nobody writes meanwhile."""
    calls = [(ast.unparse(call.func), call) for call in operations(ast.parse(source))]
    made = {ast.unparse(call.args[0]) for name, call in calls if name == "op.create_table"}
    return [
        ast.unparse(call)
        for name, call in calls
        if name.endswith(".create_index") and (name != "op.create_index" or ast.unparse(call.args[1]) not in made)
    ]


def contractions(source: str) -> list[str]:
    """The operations that the release before may not bear, unless the migration says `contracts`."""
    tree = ast.parse(source)
    if any(isinstance(node, ast.Assign) and SAYS_SO in map(ast.unparse, node.targets) for node in tree.body):
        return []
    return [ast.unparse(call) for call in operations(tree) if not is_expansion(call)]


def operations(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls of Alembic's operations: on `op`, or on what a batch of them is called."""
    batches = {
        node.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        on = node.func.value
        if isinstance(on, ast.Name) and on.id in {"op", *batches} and node.func.attr != "batch_alter_table":
            yield node


def is_expansion(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    name = call.func.attr
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "create_index" and given.get("unique") == "True":
        return False
    if name != "add_column":
        return name in ALWAYS_FINE
    [column] = [arg for arg in call.args if isinstance(arg, ast.Call)]
    of_column = {keyword.arg: ast.unparse(keyword.value) for keyword in column.keywords}
    return of_column.get("nullable") != "False" or "server_default" in of_column
