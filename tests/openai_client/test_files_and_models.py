"""Files and models by OpenAI's client: every call of it, and pages that end."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.cluster import Cluster
from tests.openai_client.conftest import BASE

pytestmark = pytest.mark.integration


def test_files_go_up_are_found_and_go(client: openai.OpenAI) -> None:
    before = {file.id for file in client.files.list()}
    made = [
        client.files.create(
            file=(f"{n}.jsonl", b'{"text": "warm", "label": "a"}\n' * (n + 1)),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        for n in range(5)
    ]
    first = made[0]
    assert (first.filename, first.purpose, first.status, first.bytes) == ("0.jsonl", "fine-tune", "processed", 31)
    assert isinstance(first.created_at, int) and first.expires_at == first.created_at + 3600
    assert client.files.wait_for_processing(first.id) == client.files.retrieve(first.id) == first
    pages = list(client.files.list(limit=2, order="asc", purpose="fine-tune").iter_pages())
    assert len(pages) > 2
    listed = [file.id for page in pages for file in page.data]
    assert [file_id for file_id in listed if file_id not in before] == [file.id for file in made]
    assert [file.id for file in client.files.list(limit=1)][: len(made)] == [file.id for file in made[::-1]]
    assert client.files.content(first.id).read() == b'{"text": "warm", "label": "a"}\n'
    for file in made:
        assert client.files.delete(file.id).deleted
    for ask in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(first.id)
        assert caught.value.code == "file_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.exe", b"x"), purpose="fine-tune")
    assert refused.value.param == "file"


def test_models_are_listed_found_and_deleted(cluster: Cluster, client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert isinstance(found[BASE].created, int) and found[BASE].owned_by == "default"
    assert client.models.retrieve(f"{BASE}:1").id == f"{BASE}:1"
    project_id = cluster.database.write(lambda uow: uow.keys.ensure_project())
    base = cluster.database.read(lambda uow: uow.models.list_versions(project_id, BASE))[0]
    for _ in range(2):
        cluster.database.write(
            lambda uow: uow.models.publish(
                project_id=project_id,
                name="short-lived",
                task=base.task,
                manifest_digest=base.manifest_digest,
                size_bytes=base.size_bytes,
                spec=base.spec,
                job_id=None,
                attempt=None,
                lineage={},
            )
        )
    with pytest.raises(openai.ConflictError) as named:
        client.models.delete("short-lived:1")
    assert named.value.code == "version_in_use"
    gone = client.models.delete("short-lived:2")
    assert gone.deleted and gone.id == "short-lived:2"
    for ref in ("short-lived:2", "nobody"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(ref)
        assert caught.value.code == "model_not_found"


def test_the_async_client_pages_too(cluster: Cluster) -> None:
    async def there_and_back() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="not-needed-here") as client:
            made = [
                await client.files.create(file=(f"{n}.csv", b"text,label\n"), purpose="fine-tune") for n in range(3)
            ]
            names = [file.filename async for file in client.files.list(limit=1)]
            for file in made:
                await client.files.delete(file.id)
            assert {job.object async for job in client.fine_tuning.jobs.list(limit=1)} <= {"fine_tuning.job"}
            answer = await client.embeddings.create(model=BASE, input=["a", "b"])
            assert [len(item.embedding) for item in answer.data] == [32, 32]
            return names[:3]

    assert asyncio.run(there_and_back()) == ["2.csv", "1.csv", "0.csv"]
