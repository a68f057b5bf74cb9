"""schemathesis over every operation of the served document, against a running stand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.stand import Stand

HERE = Path(__file__).parent
CONFIG = HERE / "schemathesis.toml"
REPOSITORY = HERE.parents[1]
CHECKS_OF_KEYS = "ignored_auth,missing_required_header"
"""That nobody gets in without a key: to be asked only of a server that asks for keys, which the document describes."""


@dataclass(frozen=True, slots=True)
class Conformance:
    """What schemathesis said; `is_good`: it found nothing."""

    is_good: bool
    output: str


def check_conformance(
    stand: Stand,
    *,
    asks_for_keys: bool,
    examples: int,
    seed: int,
    folder: Path,
    limit_s: float,
    more: Sequence[str] = (),
) -> Conformance:
    """Run every phase with up to `examples` cases an operation and phase; `folder` gets what it leaves behind."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    command += [f"{stand.cluster.url}/openapi.json", "--max-examples", str(examples), "--seed", str(seed)]
    if not asks_for_keys:
        command += ["--exclude-checks", CHECKS_OF_KEYS]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "SCHEMATHESIS_HOOKS": "tests.hostile.schemathesis_hooks",
        "ONDOL_TEST_SECRET": stand.secret,
        "ONDOL_TEST_URL": stand.cluster.url,
    }
    done = subprocess.run(
        [*command, *more],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit_s,
        text=True,
        check=False,
    )
    return Conformance(done.returncode == 0, done.stdout)
