from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.waiting import wait_until

pytestmark = pytest.mark.integration

STOP_LIMIT_S = 15


class Up:
    """`ondol up` as a person starts it: a process of its own on a folder and a free port."""

    def __init__(self, data_dir: Path, *, name: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_name(f"{name}.out")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ondol.cli.main", "up", "--data-dir", str(data_dir), "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> httpx.Client:
        wait_until(self._says_ready, within_s=180, what=f"`ondol up` to be ready (see {self.data_dir})")
        url = (self.data_dir / "run" / "api.url").read_text().strip()
        assert f"Ondol is ready: {url}" in self.output.read_text()
        return httpx.Client(base_url=url, timeout=30, trust_env=False)

    def descendants(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def _says_ready(self) -> bool:
        text = self.output.read_text()
        assert self.process.poll() is None, text
        return "Ondol is ready" in text


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    started: list[Up] = []

    def start() -> Up:
        started.append(Up(tmp_path / "data", name=f"up{len(started)}"))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
        one.process.wait(STOP_LIMIT_S + 5)


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_one_command_serves_the_first_call_and_leaves_nothing_however_it_ends(start_up: Callable[[], Up]) -> None:
    first = start_up()
    with first.wait_until_ready() as client:
        answer = client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": ["안녕하세요"]})
        assert answer.status_code == 200, answer.text
        vector = answer.json()["data"][0]["embedding"]
        assert len(vector) == 384
        wait_until(lambda: client.get("/flower").status_code == 307, within_s=60, what="Flower beside the stack")
        assert "Flower: " in first.output.read_text()
        flower = client.get("/flower", follow_redirects=True)
        assert (flower.status_code, flower.headers["www-authenticate"][:5]) == (401, "Basic")

    second = start_up()
    assert second.process.wait(30) == 2
    assert second.output.read_text().count("\n") == 1

    processes = first.descendants()
    assert len(processes) >= 6, "supervisord, redis, api, worker, device process, reconciler"
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait(5)
    wait_until(lambda: are_gone(processes), within_s=STOP_LIMIT_S, what="all descendants of a killed `up` to end")

    third = start_up()
    with third.wait_until_ready() as client:
        assert "importing" not in third.output.read_text()
        answer = client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2:1", "input": ["안녕하세요"]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["embedding"] == pytest.approx(vector, abs=1e-5)
    processes = third.descendants()
    third.process.send_signal(signal.SIGTERM)
    assert third.process.wait(STOP_LIMIT_S) == 0
    assert are_gone(processes)
    assert not (third.data_dir / "run" / "api.url").exists()
