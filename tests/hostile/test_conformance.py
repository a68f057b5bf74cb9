"""Every operation of the OpenAPI document answers as the document says, whatever is asked: schemathesis, all checks.

`python -m tests.hostile --examples 200` is the long run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.conformance import check_conformance
from tests.hostile.stand import Stand

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

SEED = 6
LIMIT_S = 270


def test_a_server_that_asks_for_keys_is_as_it_is_documented(
    keyed_stand: Stand, tmp_path: Path, tiny_version: Path
) -> None:
    before = keyed_stand.pids()
    found = check_conformance(keyed_stand, asks_for_keys=True, examples=1, seed=SEED, folder=tmp_path, limit_s=LIMIT_S)
    keyed_stand.restore_model(tiny_version)  # before anything can fail: others use it, too
    assert found.is_good, found.output
    keyed_stand.check_alive(before)


def test_an_open_server_is_as_it_is_documented(stand: Stand, tmp_path: Path, tiny_version: Path) -> None:
    before = stand.pids()
    phases = ("--phases", "fuzzing,stateful")  # the cases of the phase `coverage` are the same for both
    found = check_conformance(
        stand, asks_for_keys=False, examples=3, seed=SEED, folder=tmp_path, limit_s=LIMIT_S, more=phases
    )
    stand.restore_model(tiny_version)
    assert found.is_good, found.output
    stand.check_alive(before)
