"""What whole processes show: the log's context, no metrics where they are off, no Prometheus in the client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.cluster import REPOSITORY
from tests.http.api_process import ApiProcess
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


def test_what_one_attempt_binds_is_gone_after_it() -> None:
    code = (
        "import structlog; from ondol.logs import *; configure_logging('info', 'json', process='p'); "
        "log = structlog.get_logger()\n"
        "with log_context(job_id='job_1', kind='embedding'):\n"
        "    with log_context(attempt=2): log.info('inner', kind='mine')\n"
        "    log.info('outer')\n"
        "log.info('after')"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    inner, outer, after = done.stderr.splitlines()
    assert '"job_id": "job_1"' in inner and '"attempt": 2' in inner and '"kind": "mine"' in inner
    assert '"job_id": "job_1"' in outer and "attempt" not in outer and '"kind": "embedding"' in outer
    assert "job_1" not in after


def test_a_full_disk_under_the_log_stops_nobody(tmp_path: Path) -> None:
    code = (
        "import logging, resource, structlog; from ondol.logs import *\n"
        "configure_logging('info', 'json', process='p')\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "log = structlog.get_logger(); log.info('before')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))\n"
        "log.info('lost'); logging.getLogger('library').warning('lost, too')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "log.info('after'); log.info('later'); print('done')"
    )
    with (tmp_path / "log").open("w") as file:
        done = _run(code, file)
    assert (done.returncode, done.stdout) == (0, "done\n")
    before, *_, after, later = (tmp_path / "log").read_text().splitlines()
    assert '"event": "before"' in before and "log_lines_failed" not in before
    assert '"event": "after"' in after and '"log_lines_failed": 2' in after
    assert '"event": "later"' in later and "log_lines_failed" not in later


def test_a_reader_of_the_log_that_is_gone_stops_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import structlog; from ondol.logs import *; configure_logging('info', 'json', process='p')\n"
        "structlog.get_logger().info('to nobody'); print('done', flush=True)"
    )
    with os.fdopen(writing, "w") as gone:
        done = _run(code, gone)
    assert done.stdout == "done\n"


def _run(code: str, stderr: IO[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
    )


def test_the_client_is_loaded_without_prometheus() -> None:
    code = "import sys, ondol, ondol.client; print('prometheus_client' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_api_shows_no_metrics_where_they_are_off(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    api = ApiProcess(tmp_path, database_url=sqlite_url, redis_url=redis_server.url, metrics="false")
    api.start()
    try:
        answer = httpx.get(f"{api.url}/metrics", trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
    finally:
        api.close()
