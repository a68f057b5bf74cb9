"""docs/webhooks.md, word for word: its receiver, its submission, its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ondol.client.sync_client import Ondol
from ondol.control.host import free_port
from ondol.control.launch import launch_command
from tests.http.api_process import ROOT, Member
from tests.http.peer_worker import PeerWorker
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.webhooks.receiver import receiving

pytestmark = pytest.mark.integration

PAGE = (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")
ADDRESS, PORT = "http://127.0.0.1:9000", "--port 9000"
MODEL = "all-minilm-l6-v2"
JOB, NOTICE = "job_01k9zv6t0m3x5r7c2b8d4f6g1h", "ntc_01k9zv6t0m3x5r7c2b8d4f6g1h"
LIMIT_S = 60

Shell = Callable[[str], str]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def environment(member: Member, tmp_path: Path) -> dict[str, str]:
    """That of a person who has a key, and `ondol` and `uvicorn` on the PATH."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "ONDOL_URL": member.api.url,
        "ONDOL_API_KEY": member.secret,
    }


@pytest.fixture
def shell(environment: dict[str, str], tmp_path: Path) -> Shell:
    """What a command prints."""

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def worker(member: Member, redis_server: RedisServer) -> Iterator[PeerWorker]:
    peer = PeerWorker(member.api.database, redis_server.url, "peer@documentation")
    yield peer
    peer.close()


def test_the_receiver_and_the_submission_of_the_page_work(
    member: Member, environment: dict[str, str], shell: Shell, worker: PeerWorker, tmp_path: Path
) -> None:
    receiver, submission, _ = blocks("python")
    start, _, _ = blocks("bash")
    port, said = free_port(), tmp_path / "said.log"
    member.api.publish(member.project_id, MODEL)
    (tmp_path / "receiver.py").write_text(receiver, encoding="utf-8")
    (tmp_path / "submission.py").write_text(submission.replace(ADDRESS, f"http://127.0.0.1:{port}"), encoding="utf-8")
    command = launch_command(
        ["bash", "-ec", start.replace(PORT, f"--port {port}").replace("\nuvicorn", "\nexec uvicorn")],
        parent=str(os.getpid()),
        death_signal="KILL",
    )
    with said.open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(lambda: "Uvicorn running" in said.read_text(), within_s=LIMIT_S, what="the receiver")
        shell("python submission.py")
        worker.run_one_message()
        wait_until(lambda: "job.succeeded job_" in said.read_text(), within_s=LIMIT_S, what="the receiver to be told")
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def test_the_commands_of_the_page_show_notices_tell_again_and_rotate(client: Ondol, shell: Shell) -> None:
    _, commands, rotate = blocks("bash")
    with receiving() as receiver:
        job = client.jobs.create("embedding", input="x", model="tiny", webhook=receiver.url).cancel()
        wait_until(lambda: job.notices()[0].status == "accepted", within_s=LIMIT_S, what="the delivery")
        assert (job.webhook, job.notices()[0].job_id) == (receiver.url, job.id)
        printed = shell(commands.replace(JOB, job.id).replace(NOTICE, job.notices()[0].id))
        assert "204 No Content" in printed and printed.count(job.notices()[0].id) == 2
        wait_until(lambda: len(receiver.received) == 2, within_s=LIMIT_S, what="the second delivery")
    before = client.webhooks.secret()
    fresh = shell(rotate).strip()
    assert fresh == client.webhooks.secret() != before


def test_the_openai_client_of_the_page_verifies(client: Ondol) -> None:
    names: dict[str, object] = {}
    with receiving() as receiver:
        job = client.jobs.create("embedding", input="x", model="tiny", webhook=receiver.url).cancel()
        wait_until(lambda: receiver.received, within_s=LIMIT_S, what="the delivery")
        [got] = receiver.received
        names |= {"body": got.body, "headers": dict(got.headers), "secret": client.webhooks.secret()}
        exec(blocks("python")[2], names)
        assert getattr(names["event"], "id", None) == job.notices()[0].id
