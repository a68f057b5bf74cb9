"""`python -m tests.chaos.breakages [NAME …]`: break the product on purpose; the checker must see each of them.

Each breakage is a small patch, applied to a copy of the source tree and run under a short chaos run of its own. Exit
codes: 0 all were caught, 1 some were not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_COPIED = ("ondol", "models_store", "workers", "api", "tests")
_RUN_LIMIT_S = 280


@dataclass(frozen=True, slots=True)
class Patch:
    """One exact replacement in a file of the source tree; the text stands there once."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Breakage:
    """A promise that is not kept: what is wrong, the run that shows it, and the invariants of which one must tell."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    arguments: tuple[str, ...]
    seen_by: tuple[str, ...]

    def check_fits(self, root: Path = REPOSITORY) -> None:
        """AssertionError if the source has moved on: then the patch must, too."""
        for patch in self.patches:
            num = (root / patch.path).read_text(encoding="utf-8").count(patch.old)
            assert num == 1, f"breakage {self.name}: its text stands {num} times in {patch.path}"

    def apply(self, root: Path) -> None:
        """Break the source tree at `root`."""
        self.check_fits(root)
        for patch in self.patches:
            path = root / patch.path
            path.write_text(path.read_text(encoding="utf-8").replace(patch.old, patch.new), encoding="utf-8")


_CALM = ("--calm", "--minutes", "0.15")
_OF_ATTEMPT = '            jobs.c.attempt == sa.bindparam("b_attempt"),\n'
_OF_STATE = "            jobs.c.state == JobState.RUNNING,\n"
_OF_ANY_ATTEMPT = '            sa.bindparam("b_attempt", type_=sa.Integer) > 0,\n'
_BLOBS_THEN_MANIFEST = """\
        for file in files:
            self._put_blob(folder / file.path, file, ref)
        with translated(f"writing the manifest of {ref}"):
            self._write_bytes(self._manifest_path(manifest.digest), data)
"""
_MANIFEST_THEN_BLOBS = """\
        with translated(f"writing the manifest of {ref}"):
            self._write_bytes(self._manifest_path(manifest.digest), data)
        for file in files:
            self._put_blob(folder / file.path, file, ref)
"""
_COMMIT_THEN_PUBLISH = """\
        chosen = self._database.write(lambda uow: uow.ringing.choose(self._limits))
        for message in chosen:
"""
_PUBLISH_THEN_COMMIT = """\
        def choose_and_publish(uow):
            found = uow.ringing.choose(self._limits)
            for one in found:
                self._publisher.publish(one.id, worker=one.worker, priority=one.priority, kind=one.kind, jobs=one.jobs)
            return found

        chosen = self._database.write(choose_and_publish)
        for message in ():
"""
_RESULTS = "        _INSERT_RESULTS.execute(self._conn, [_result_row(done, self._uow.now) for done in recorded])\n"
_RESULTS_LATER = """\
        later, engine = [_result_row(done, self._uow.now) for done in recorded], self._conn.engine

        def insert():
            with engine.begin() as conn:
                _INSERT_RESULTS.execute(conn, later)

        self._uow.after_commit(insert)
"""

BREAKAGES = (
    Breakage(
        "fence_removed",
        "whoever held a job once may still end it",
        (Patch("ondol/sql/attempts.py", _OF_ATTEMPT + _OF_STATE, _OF_ANY_ATTEMPT),),
        ("--faults", "zombie", "--minutes", "0.25", "--drain-s", "30"),
        ("stale writes are refused", "moves are legal"),
    ),
    Breakage(
        "cancel_not_fenced",
        "an attempt that is current may end a job that is no longer running",
        (Patch("ondol/sql/attempts.py", _OF_ATTEMPT + _OF_STATE, _OF_ATTEMPT),),
        ("--faults", "zombie", "--minutes", "0.25", "--drain-s", "30"),
        ("cancelled stays cancelled", "stale writes are refused", "moves are legal"),
    ),
    Breakage(
        "lapsed_never_taken_back",
        "nobody ends a session whose lease ran out",
        (
            Patch(
                "ondol/control/reconciler.py",
                "lapsed = uow.sessions.lapse() if time.monotonic() >= self._believe_until else []",
                "lapsed = []",
            ),
        ),
        ("--faults", "zombie", "--minutes", "0.2", "--drain-s", "20"),
        ("every job ends",),
    ),
    Breakage(
        "canary_ignored",
        "nobody notices that Redis lost its data",
        (Patch("ondol/control/reconciler.py", "return not self._redis.exists(CANARY_KEY)", "return False"),),
        ("--faults", "flush_redis", "--minutes", "0.15"),
        ("nothing is left over",),
    ),
    Breakage(
        "usage_counted_again",
        "what was written of the usage is written again",
        (Patch("api/usage_meter.py", '(new_id("use"), self._sums), {}', '(new_id("use"), self._sums), self._sums'),),
        _CALM,
        ("usage is counted once",),
    ),
    Breakage(
        "idempotency_key_ignored",
        "a repeated request is a new one",
        (Patch("api/idempotency.py", "    if keyed is None:\n", "    if keyed is None or keyed.key:\n"),),
        _CALM,
        ("one submission is one job",),
    ),
    Breakage(
        "refused_and_recorded",
        "another body under a used key is refused when its job is in SQL already",
        (
            Patch(
                "api/idempotency.py",
                "            return await services.database.write(lambda uow: _answer(uow, keyed, make))\n",
                "            try:\n"
                "                return await services.database.write(lambda uow: _answer(uow, keyed, make))\n"
                "            except IdempotencyMismatch:\n"
                "                await services.database.write(make)\n"
                "                raise\n",
            ),
            Patch(
                "api/idempotency.py",
                "DatabaseUnavailable, IdempotencyInFlight,",
                "DatabaseUnavailable, IdempotencyInFlight, IdempotencyMismatch,",
            ),
        ),
        _CALM,
        ("refused submissions leave nothing",),
    ),
    Breakage(
        "manifest_first",
        "a version is in the store before its files",
        (Patch("models_store/store.py", _BLOBS_THEN_MANIFEST, _MANIFEST_THEN_BLOBS),),
        _CALM,
        ("manifests come last",),
    ),
    Breakage(
        "retry_of_a_success",
        "a job that has succeeded may be retried",
        (
            Patch("ondol/sql/jobs.py", "if job.state is not JobState.FAILED or not self._move(", "if not self._move("),
            Patch(
                "ondol/sql/jobs.py",
                "only_from=frozenset({JobState.FAILED}),",
                "only_from=frozenset({JobState.FAILED, JobState.SUCCEEDED}),",
            ),
        ),
        _CALM,
        ("moves are legal", "what was seen stays"),
    ),
    Breakage(
        "result_outside_the_transaction",
        "a success is committed, then its result",
        (Patch("ondol/sql/attempts.py", _RESULTS, _RESULTS_LATER),),
        ("--faults", "kill_worker", "--minutes", "0.3"),
        ("success is committed once", "what was seen stays", "no internal errors", "usage is counted once"),
    ),
    Breakage(
        "answer_before_commit",
        "callers are told before their transaction is committed",
        (
            Patch(
                "ondol/sql/database.py",
                "                outcomes.append((value, None))\n",
                "                outcomes.append((value, None))\n"
                "                if not item.future.done():\n"
                "                    item.future.set_result(value)\n",
            ),
        ),
        ("--faults", "fill_disk", "--minutes", "0.3"),
        ("accepted jobs are known", "one submission is one job", "what was seen stays"),
    ),
    Breakage(
        "device_lock_ignored",
        "a second process may hold a device",
        (
            Patch(
                "workers/device_lock.py", "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "        pass\n"
            ),
        ),
        ("--faults", "second_holder", "--minutes", "0.1"),
        ("one holder a device",),
    ),
    Breakage(
        "ring_before_commit",
        "a message is on its way before what it names is committed",
        (Patch("ondol/control/ringer.py", _COMMIT_THEN_PUBLISH, _PUBLISH_THEN_COMMIT),),
        ("--database", "postgresql", *_CALM),
        ("calm needs no repair",),
    ),
)


def run_broken(breakage: Breakage, folder: Path) -> tuple[bool, str]:
    """Break a copy in `folder` and run it there; whether it was caught, and by what (or why not)."""
    for name in _COPIED:
        shutil.copytree(REPOSITORY / name, folder / name)
    breakage.apply(folder)
    report = folder / "report.json"
    command = [sys.executable, "-m", "tests.chaos", "--seed", "7", "--no-trainer", "--out", str(report)]
    command += ["--folder", str(folder / "run"), *breakage.arguments]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with (folder / "out.log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            running.wait(_RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            return False, f"the run did not end within {_RUN_LIMIT_S} s"
        finally:
            if running.poll() is None:
                running.terminate()  # not SIGKILL: it has processes of its own to end
                running.wait()
    if not report.exists():
        return False, "the run itself broke: " + (folder / "out.log").read_text(errors="replace").strip()[-300:]
    violations: list[str] = json.loads(report.read_text())["violations"]
    seen = [violation for violation in violations if violation.split(":", 1)[0] in breakage.seen_by]
    if not seen:
        return False, f"seen: {violations[:3]}"
    return True, f"{len(violations)} violations, as {seen[0][:160]}"


def main(names: Sequence[str]) -> int:
    """Run those that are named, or all."""
    unknown = set(names) - {breakage.name for breakage in BREAKAGES}
    if unknown:
        print(f"no breakage {', '.join(sorted(unknown))}; there are: {', '.join(b.name for b in BREAKAGES)}")
        return 2
    chosen = [breakage for breakage in BREAKAGES if not names or breakage.name in names]
    num_caught = 0
    for breakage in chosen:
        folder = Path(tempfile.mkdtemp(prefix="ondol-broken-"))
        is_caught, how = run_broken(breakage, folder)
        num_caught += is_caught
        print(
            f"{'caught' if is_caught else 'NOT CAUGHT':>10}  {breakage.name}: {breakage.what}\n{'':>12}{how}",
            flush=True,
        )
        if is_caught:
            shutil.rmtree(folder)
        else:
            print(f"{'':>12}files in {folder}", flush=True)
    print(f"{num_caught} of {len(chosen)} breakages caught")
    return 0 if num_caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
