"""SDK and command line over a real api: labels and entities by call and by job, and what failed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from ondol import AsyncOndol, Entity, ItemErrors, LabelScore, Ondol
from ondol.cli.main import run
from ondol.client.classify_flow import Pair
from tests.http.api_process import MODEL, MOODS, NAMES, Member
from tests.http.peer_worker import PeerWorker, entities_of, scores_of

pytestmark = pytest.mark.integration

T = TypeVar("T")
ERROR = {"code": "worker_lost", "message": "lost", "param": None}


@pytest.fixture
def labeller(member: Member, worker: PeerWorker, monkeypatch: pytest.MonkeyPatch) -> Member:
    """Somebody with the models `moods` and `names` and a worker; the command line speaks for them."""
    member.api.publish(member.project_id, "moods", MOODS)
    member.api.publish(member.project_id, "names", NAMES)
    monkeypatch.setenv("ONDOL_URL", member.api.url)
    monkeypatch.setenv("ONDOL_API_KEY", member.secret)
    return member


def labels_of(item: str | dict[str, str]) -> list[LabelScore]:
    scores = scores_of(item)
    return [LabelScore(MOODS.labels[i], float(str(scores[i]))) for i in np.argsort(-scores, kind="stable")]


def entities(text: str) -> list[Entity]:
    return [Entity(e["entity_group"], e["score"], e["word"], e["start"], e["end"]) for e in entities_of(text)]


def while_one_message_runs(worker: PeerWorker, work: Callable[[], T], **more: object) -> T:
    """What `work` returns while the worker runs the message that it makes."""
    running = threading.Thread(target=lambda: worker.run_one_message(**more))  # type: ignore[arg-type]  # errors only
    running.start()
    try:
        return work()
    finally:
        running.join()


def test_calls_and_jobs_give_the_same_labels(labeller: Member, worker: PeerWorker) -> None:
    texts: list[str | Pair] = ["a", {"text": "b", "text_pair": "c"}]
    with Ondol() as client:
        called = client.classify(texts, model="moods")
        assert called == [labels_of("a"), labels_of({"text": "b", "text_pair": "c"})]
        by_job = while_one_message_runs(worker, lambda: client.classify(texts, model="moods", as_job=True))
        assert by_job == called
        assert client.classify("a", model="moods", top_k=1) == labels_of("a")[:1]


def test_calls_and_jobs_give_the_same_entities(labeller: Member, worker: PeerWorker) -> None:
    texts = ["Ada met Grace", "nobody"]
    with Ondol() as client:
        called = client.tag(texts, model="names")
        assert called == [entities(texts[0]), []]
        assert while_one_message_runs(worker, lambda: client.tag(texts, model="names", as_job=True)) == called
        assert client.tag(texts[0], model="names") == called[0]


def test_failed_inputs_do_not_spoil_the_others(labeller: Member, worker: PeerWorker) -> None:
    with Ondol() as client, pytest.raises(ItemErrors) as caught:
        while_one_message_runs(
            worker, lambda: client.classify(["a", "b"], model="moods", as_job=True), errors={"0": ERROR}
        )
    assert caught.value.partial == [None, labels_of("b")] and caught.value.errors[0].code == "worker_lost"


def test_the_asyncio_client_does_the_same(labeller: Member) -> None:
    async def ask() -> tuple[list[LabelScore], list[list[Entity]]]:
        async with AsyncOndol() as client:
            return await client.classify("a", model="moods"), await client.tag(["Ada", "x"], model="names")

    assert asyncio.run(ask()) == (labels_of("a"), [entities("Ada"), []])


def test_the_command_line_prints_a_table_or_one_line_an_input(
    labeller: Member, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a\nAda b\n", encoding="utf-8")
    assert run(["classify", "--file", str(file), "--model", "moods", "--top-k", "1", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["index"], line["output"][0]["label"]) for line in lines] == [
        (0, labels_of("a")[0].label),
        (1, labels_of("Ada b")[0].label),
    ]
    assert run(["classify", "a", "--model", "moods", "--threshold", "0.4"]) == 0
    table = capsys.readouterr().out
    assert "PREDICTED" in table and all(label in table for label in MOODS.labels)
    assert run(["tag", "Ada met Grace", "nobody", "--model", "names"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        ["Ada", "met", "Grace", "NAME", "Ada", "0", "3", "0.7500"],
        ["NAME", "Grace", "8", "13", "0.7500"],
        ["nobody", "-"],
    ]
    assert run(["tag", "Ada", "--model", "names", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"index": 0, "output": entities_of("Ada")}


def test_the_command_line_says_what_a_model_cannot_do(labeller: Member, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classify", "a", "--model", MODEL]) == 2
    assert "no trained head" in capsys.readouterr().err


def test_the_command_line_ends_with_1_when_an_input_failed(
    labeller: Member, worker: PeerWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", "a", "b", "--model", "moods", "--job"]
    assert while_one_message_runs(worker, lambda: run(command), errors={"1": ERROR}) == 1
    shown = capsys.readouterr()
    assert "failed" in shown.out and "input[1]: worker_lost" in shown.err
