"""One Idempotency-Key, one effect: the first answer again, byte for byte; another body is refused."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.http.api_process import Member, job_body

pytestmark = pytest.mark.integration

KEY = {"idempotency-key": "the-same"}


def test_fifty_posts_at_once_make_one_job(member_of_each: Member) -> None:
    member = member_of_each

    async def post_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=member.api.url, headers=member.http.headers, timeout=30, trust_env=False
        ) as http:
            return await asyncio.gather(*(http.post("/v1/jobs", json=job_body(), headers=KEY) for _ in range(50)))

    answers = asyncio.run(post_all())
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 49
    assert member.count_rows() == 3  # the job, its input, the key


def test_another_body_under_the_same_key_is_422(member: Member) -> None:
    assert member.http.post("/v1/jobs", json=job_body(), headers=KEY).status_code == 202
    for path, body in (("/v1/jobs", job_body(input="other")), ("/v1/jobs/batch", job_body()), ("/v1/jobs", {})):
        answer = member.http.post(path, json=body, headers=KEY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_mismatch")


def test_a_batch_is_answered_again_byte_for_byte(member: Member) -> None:
    batch = {"jobs": [job_body(), job_body(model="nothing"), job_body(input=["a", "b"])]}
    first, again = (member.http.post("/v1/jobs/batch", json=batch, headers=KEY) for _ in range(2))
    assert first.content == again.content
    assert member.count_rows() == 5


def test_a_key_belongs_to_its_project(member: Member) -> None:
    other = member.api.member()
    answers = [who.http.post("/v1/jobs", json=job_body(), headers=KEY).json()["id"] for who in (member, other)]
    other.close()
    assert answers[0] != answers[1]


def test_what_was_accepted_is_answered_again_even_if_it_would_be_refused_now(member: Member) -> None:
    first = member.http.post("/v1/jobs", json=job_body(), headers=KEY)
    member.api.database.write(lambda uow: uow.conn.exec_driver_sql("UPDATE aliases SET name = 'gone'"))
    again = member.http.post("/v1/jobs", json=job_body(), headers=KEY)
    member.api.database.write(lambda uow: uow.conn.exec_driver_sql("UPDATE aliases SET name = 'default'"))
    assert (again.status_code, again.content) == (202, first.content)


def test_a_refusal_keeps_the_key_free(member: Member) -> None:
    assert member.http.post("/v1/jobs", json=job_body(model="nothing"), headers=KEY).status_code == 404
    assert member.http.post("/v1/jobs", json=job_body(), headers=KEY).status_code == 202


def test_posts_without_a_key_make_a_job_each(member: Member) -> None:
    assert member.submit()["id"] != member.submit()["id"]


def test_a_change_of_a_job_is_answered_again_though_it_fits_no_more(member: Member) -> None:
    job_id = member.submit()["id"]
    path = f"/v1/jobs/{job_id}/cancel"
    first = member.http.post(path, headers=KEY)
    member.http.delete(f"/v1/jobs/{job_id}")
    again = member.http.post(path, headers=KEY)
    assert (first.status_code, again.content) == (200, first.content)
    assert "idempotent-replayed" in again.headers
    assert member.http.post(path).status_code == 404
    assert member.http.post(f"/v1/jobs/{member.submit()['id']}/cancel", headers=KEY).status_code == 422
