"""Memory of every process while clients send much, read slowly, or leave without a word: what it grows by at most.

`python -m bench.memory [--full]`. A stack with a tiny random model: one upload (2 GiB with --full), readers of that
file and of a large result that take a kilobyte a second or nothing, and a thousand clients that watch a job's events
and vanish, half of them without closing their connection (where this runs as root; else all close it). The memory of
a bulk job of a million texts is measured by `bench.million`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.machine import processes
from bench.million import text_of
from bench.report import Line, Series, Size, run_line
from bench.stacks import TINY, import_tiny, running_stack, stop_in_order
from ondol.client.sync_client import Ondol
from ondol.demo.stack import Stack
from tests.overload.watchers import asks, head_of, held_by, num_streams, status_of, vanish, watching
from tests.waiting import wait_until

MIB = 1024 * 1024
API = "api.main"
NUM_STALLED, NUM_TRICKLING = 10, 5
TRICKLE_BYTES = 1_024
NUM_WATCHERS, NUM_BEYOND = 1_000, 10
FREED_WITHIN_S = 120.0
LOOK_S = 0.1
_LINE = b'{"text": "one line of a large file, as long as lines of text are"}\n' * 16_000


class Memory:
    """Resident MiB of each process of a stack by name, looked at ten times a second while the block runs."""

    def __init__(self, stack: Stack) -> None:
        self._pid = stack.pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")
        self._began = time.perf_counter()
        self.before = self._now()
        self.most = dict(self.before)
        self.curve: list[tuple[float, float]] = []

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def growth(self, name: str) -> float:
        """What a process has grown by at most; MiB."""
        return self.most[name] - self.before.get(name, 0.0)

    def _now(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for seen in processes(self._pid):
            found[seen.name] = found.get(seen.name, 0.0) + seen.rss_mib
        return found

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            now = self._now()
            self.curve.append((round(time.perf_counter() - self._began, 2), round(now.get(API, 0.0), 1)))
            for name, mib in now.items():
                self.most[name] = max(self.most.get(name, 0.0), mib)


def measure(_parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    upload_mib, num_texts, slow_s = size.pick(256, 2_048), size.pick(20_000, 200_000), size.pick(10, 60)
    settings = {"upload_mib": upload_mib, "texts": num_texts, "readers_s": slow_s, "watchers": NUM_WATCHERS}
    line = Line("memory", "what each process grows by while clients send much, read slowly, or vanish", settings)
    given = {"ONDOL_DTYPE": "float32", "ONDOL_MAX_FILE_MB": str(2 * upload_mib)}
    with running_stack(given) as stack, Ondol(stack.url, timeout=600) as client:
        import_tiny(client, stack.data_dir)
        with _phase(line, stack, f"upload of {upload_mib} MiB"):
            file_id = _upload(stack.url, upload_mib)
        _readers(line, stack, f"/v1/files/{file_id}/content", f"a file of {upload_mib} MiB", slow_s)
        job_id = _large_result(client, num_texts)
        with _phase(line, stack, f"result of {num_texts:,} texts as JSON, read at once"):
            num_bytes = _read_all(stack.url, f"/v1/jobs/{job_id}/result")
        _readers(line, stack, f"/v1/jobs/{job_id}/result", f"a result of {num_bytes / MIB:.0f} MiB", slow_s)
        _watchers(line, stack, client)
    return line


@contextlib.contextmanager
def _phase(line: Line, stack: Stack, what: str) -> Iterator[Memory]:
    """Everything that happens in the block, as figures and a curve under this name."""
    began = time.perf_counter()
    with Memory(stack) as memory:
        yield memory
    others = ", ".join(
        f"{name} {memory.growth(name):.0f}" for name in sorted(memory.most) if name != API and memory.growth(name) >= 1
    )
    note = f"from {memory.before[API]:.0f}; others: {others or 'less than 1 each'}; {time.perf_counter() - began:.0f} s"
    line.add(f"{what}: {API} grew by", "MiB", [memory.growth(API)], note)
    line.series.append(Series("memory_of_the_api", what, "seconds", "resident MiB", tuple(memory.curve)))


def _upload(url: str, num_mib: int) -> str:
    """Upload so much, made while it is sent; the file's id."""

    def body() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        for _ in range(num_mib * MIB // len(_LINE)):
            yield _LINE
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{url}/v1/files", content=body(), headers=headers, timeout=600, trust_env=False)
    answer.raise_for_status()
    return str(answer.json()["id"])


def _readers(line: Line, stack: Stack, path: str, of_what: str, seconds: int) -> None:
    """Some readers that take nothing, and some that take a kilobyte a second."""
    what = f"{NUM_STALLED} readers of {of_what} that stall, {NUM_TRICKLING} at 1 KB/s"
    head, port = head_of("GET", path), _port(stack)
    with _phase(line, stack, what), contextlib.ExitStack() as held:
        for _ in range(NUM_STALLED):
            held.enter_context(asks(port, head))
        trickling = [held.enter_context(asks(port, head)) for _ in range(NUM_TRICKLING)]
        for _ in range(seconds):
            for reader in trickling:
                if not reader.recv(TRICKLE_BYTES):
                    raise RuntimeError(f"a slow reader of {of_what} was left")
            threading.Event().wait(1.0)  # the readers' pace


def _large_result(client: Ondol, num_texts: int) -> str:
    with tempfile.TemporaryDirectory(prefix="ondol-bench-") as folder:
        file = Path(folder) / "texts.csv"
        file.write_text("text\n" + "".join(f"{text_of(row)}\n" for row in range(num_texts)), encoding="utf-8")
        job = client.jobs.create(kind="embedding", model=TINY, input_file=client.files.put(file).id)
    if job.wait().status != "succeeded":
        raise RuntimeError(f"the job {job.status}: {job.error}")
    return job.id


def _read_all(url: str, path: str) -> int:
    with httpx.stream("GET", url + path, timeout=600, trust_env=False) as answer:
        answer.raise_for_status()
        return sum(map(len, answer.iter_raw()))


def _watchers(line: Line, stack: Stack, client: Ondol) -> None:
    job = client.jobs.create(kind="embedding", model=TINY, input=["later"], not_before=time.time() + 86_400)
    port, pid = _port(stack), next(seen.pid for seen in processes(stack.pid) if seen.name == API)
    before = held_by(pid)
    num_silent = NUM_WATCHERS // 2 if os.geteuid() == 0 else 0
    with _phase(line, stack, f"{NUM_WATCHERS} watchers of events") as memory:
        with watching(port, job.id, NUM_WATCHERS) as watchers:
            during = held_by(pid)
            line.add("watchers that got a stream", "", [num_streams(port)])
            refused = [_status_of_another(port, job.id) for _ in range(NUM_BEYOND)]
            line.add("one more was answered 429", "ratio", [refused.count(429) / NUM_BEYOND])
            vanish(watchers[:num_silent])
            began = time.perf_counter()
        wait_until(lambda: num_streams(port) == 0, within_s=FREED_WITHIN_S, what="all watchers to be found out")
        note = f"{num_silent} of them vanished without closing"
        line.add("until the last was found out", "s", [time.perf_counter() - began], note)
    line.add("memory of a watcher", "KiB", [1_024 * memory.growth(API) / NUM_WATCHERS])
    after = held_by(pid)
    for name, num in before.items():
        line.add(f"{name}: more than before, afterwards", "", [after[name] - num], f"{num}, then {during[name]}")
    with _phase(line, stack, f"{NUM_WATCHERS} watchers once more"), watching(port, job.id, NUM_WATCHERS):
        pass
    job.cancel()


def _status_of_another(port: int, job_id: str) -> int:
    with asks(port, head_of("GET", f"/v1/jobs/{job_id}/events", accept="text/event-stream")) as connection:
        return status_of(connection)


def _port(stack: Stack) -> int:
    port = httpx.URL(stack.url).port
    assert port is not None
    return port


if __name__ == "__main__":
    stop_in_order()
    sys.exit(run_line(measure, name="memory", about=__doc__))
