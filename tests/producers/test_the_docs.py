"""The page on Celery producers, word for word: its Python in an environment without Ondol, and its Redis user."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from celery import states

from tests.http.peer_worker import PeerWorker
from tests.producers.producer import LIMIT_S, MODEL, Producer, running_producer
from tests.producers.shop import Shop
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "celery.md").read_text(encoding="utf-8")
URL = "redis://:secret@127.0.0.1:6379/0"


def test_the_python_of_the_page_runs_without_ondol(
    shop: Shop, worker: PeerWorker, shop_redis: RedisServer, producer_python: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    assert sum(1 for line in blocks[0].splitlines() if line.strip()) <= 10
    text = "\n".join(blocks)
    assert URL in text
    script = tmp_path / "page.py"
    script.write_text(text.replace(URL, shop_redis.url).replace("all-minilm-l6-v2", MODEL), encoding="utf-8")
    before = shop.count()
    with subprocess.Popen(
        [str(producer_python), "-W", "error::ImportWarning", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    ) as process:
        for num in (1, 2):
            wait_until(
                lambda num=num: shop.count() >= before + num or process.poll() is not None,  # type: ignore[misc]  # bound at definition
                within_s=LIMIT_S,
                what="the script to submit",
            )
            if process.poll() is None:
                worker.run_one_message()
        output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    width, refusal = output.splitlines()
    assert width == "8"
    assert refusal.startswith("LookupError") and "options.train_file" in refusal


def test_the_environment_of_producers_has_no_ondol(producer_python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(producer_python), "-c", "import celery, ondol"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "No module named 'ondol'" in done.stderr


def test_the_redis_user_of_the_page_may_do_what_producers_do(
    shop: Shop, worker: PeerWorker, shop_redis: RedisServer
) -> None:
    command = re.search(r"```\n(ACL SETUSER .*?)```", PAGE, flags=re.DOTALL)
    assert command is not None
    with shop_redis.client() as administrator:
        administrator.execute_command(*command[1].split())
        try:
            _submit_as(_url_of(shop_redis.url, "shop:choose-a-password"), shop, worker)
        finally:
            administrator.execute_command("ACL", "DELUSER", "shop")


def _submit_as(url: str, shop: Shop, worker: PeerWorker) -> None:
    with running_producer(url) as producer:
        _submit(producer, shop, worker)
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.rpush("ondol.peer@test.normal", "a message of ours")


def _submit(producer: Producer, shop: Shop, worker: PeerWorker) -> None:
    sent = producer.embed(queue="ondol.jobs")
    worker.run_one_message()
    assert sent.get(timeout=LIMIT_S)["object"] == "list"
    sent.forget()
    later = producer.send(model=MODEL, input=["x"], not_before=4e9)
    shop.job_of(later.id)
    later.revoke()
    producer.wait_for_state(later, states.REVOKED)


def _url_of(url: str, credentials: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{credentials}@{parts.hostname}:{parts.port}"))
