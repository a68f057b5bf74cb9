"""The loop's own times: calls beside a training, cancel to free device, published to first answer, trainer overhead.

`python -m bench.loop [--calls 300]`: one embedded stack on all cores, all-minilm-l6-v2, the demo's bank questions.
Prints a table, writes `bench/results/loop.json`, gates nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.demo.stack import Stack
from ondol.demo.texts import TRAINING_FILE, read_questions

RESULTS = Path(__file__).parent / "results"
MODEL = "all-minilm-l6-v2"
PAUSE_S = 0.1
"""Between two calls: what one person at a keyboard would notice, not a load."""
BATCH = 16
RELEASE_LIMIT_S = 60.0


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.loop", description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="calls without and with a training beside them")
    parser.add_argument("--cancels", type=int, default=5)
    parsed = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="ondol-loop-") as folder,
        Stack(Path(folder) / "data") as stack,
        Ondol(stack.url) as client,
    ):
        figures = measure(client, parsed.calls, parsed.cancels)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loop.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:34} {value:.3f}" if isinstance(value, float) else f"{name:34} {value}")
    return 0


def measure(client: Ondol, num_calls: int, num_cancels: int) -> dict[str, Any]:
    """All figures, seconds unless the name says otherwise."""
    texts = [item.text for item in read_questions("test")]
    client.embed(texts[0], model=MODEL)
    idle = call_times(client, texts, num_calls)
    job = fine_tune(client, "beside", epochs=40)
    wait_for_steps(job, 10)
    beside = call_times(client, texts, num_calls)
    # A step's own time: the trainer reports samples a second over the time since the report before, waits at the gate
    # included, so it is taken from a training without calls beside it.
    job.cancel()
    wait_for_release(job)
    released = [cancel_time(client, i) for i in range(num_cancels)]
    finished = fine_tune(client, "served", epochs=2, alias="production")
    finished.wait()
    begun = time.monotonic()
    client.classify(texts[0], model="served@production")
    first_answer_s = time.monotonic() - begun
    step_s = BATCH / statistics.median(samples_per_s(finished))
    return {
        "idle_p50_s": percentile(idle, 50),
        "idle_p99_s": percentile(idle, 99),
        "beside_training_p50_s": percentile(beside, 50),
        "beside_training_p99_s": percentile(beside, 99),
        "training_step_s": step_s,
        "bound_p99_s": step_s + percentile(idle, 99),
        "cancel_to_free_device_s": released,
        "published_to_first_answer_s": first_answer_s,
        **overhead(finished),
    }


def call_times(client: Ondol, texts: Sequence[str], num: int) -> list[float]:
    """Seconds of `num` calls of one text, one after the other."""
    times = []
    for i in range(num):
        begun = time.perf_counter()
        client.embed(texts[i % len(texts)], model=MODEL)
        times.append(time.perf_counter() - begun)
        time.sleep(PAUSE_S)  # the calls are spaced so: part of the load, not a wait
    return times


def fine_tune(client: Ondol, name: str, *, epochs: int, alias: str | None = None) -> Job:
    """A fine-tune on the demo's questions."""
    return client.fine_tune(
        str(TRAINING_FILE), model=MODEL, name=name, alias=alias, epochs=epochs, batch_size=BATCH, learning_rate=2e-4
    )


def wait_for_steps(job: Job, num_steps: int) -> None:
    """Until the training has come so far."""
    for event in job.events():
        if event.type == "metrics" and event.data.get("step", 0) >= num_steps:
            return
    raise SystemExit(f"bench.loop: {job.id} ended before step {num_steps}: {job.refresh().error}")


def wait_for_release(job: Job) -> float:
    """Seconds from the cancellation to the free device, by the server's clock."""
    limit = time.monotonic() + RELEASE_LIMIT_S
    while job.refresh().device_released_at is None:
        if time.monotonic() > limit:
            raise SystemExit(f"bench.loop: the device of {job.id} was not free after {RELEASE_LIMIT_S:g} s")
        time.sleep(0.05)  # between two looks: the figure comes from the server's own times
    assert job.device_released_at is not None
    assert job.finished_at is not None
    return (job.device_released_at - job.finished_at).total_seconds()


def cancel_time(client: Ondol, number: int) -> float:
    """Of one training that is cancelled after its first steps."""
    job = fine_tune(client, f"cancelled-{number}", epochs=40)
    wait_for_steps(job, 10)
    job.cancel()
    return round(wait_for_release(job), 3)


def samples_per_s(job: Job) -> list[float]:
    """What the training reported, its first report apart."""
    reports = [e.data for e in job.events() if e.type == "metrics" and e.data.get("phase") == "train"]
    return [float(report["samples_per_s"]) for report in reports[1:]]


def overhead(job: Job) -> dict[str, float]:
    """Supervisor's CPU and time in our callbacks, over the time of the training."""
    timings = job.refresh().raw["timings"]
    spent_s = timings["supervisor_cpu_s"] + timings["child_callbacks_s"]
    return {
        "train_s": timings["train_s"],
        "supervisor_cpu_s": timings["supervisor_cpu_s"],
        "callbacks_s": timings["child_callbacks_s"],
        "trainer_overhead_percent": 100 * spent_s / timings["train_s"],
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[min(len(values) - 1, round(len(values) * percent / 100))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
