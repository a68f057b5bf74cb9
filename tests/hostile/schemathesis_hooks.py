"""Hooks of schemathesis: half of its well-formed requests name what exists, so that good answers are seen too."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import schemathesis

from tests.waiting import wait_until

MODEL = "tiny:1"
_OUR_ID = re.compile(r"[a-z]+_01[0-9a-z]{24}")
"""Ids that were really given begin with a time, of this century; those that are made up hardly ever do."""
_numbers = itertools.count()


class Things:
    """Jobs, files and the like of the stand, made when they are first wanted; what is deleted is made anew."""

    def __init__(self) -> None:
        headers = {"authorization": f"Bearer {os.environ['ONDOL_TEST_SECRET']}"}
        self._http = httpx.Client(base_url=os.environ["ONDOL_TEST_URL"], headers=headers, timeout=30, trust_env=False)
        self._made: dict[str, str] = {}

    def give(self, kind: str, *, is_fresh: bool) -> str:
        """The id of a thing of that kind."""
        makers: dict[str, Callable[[], str]] = {
            "done": self._job,
            "waiting": lambda: self._job(not_before=time.time() + 86_400),
            "fine-tune": self._fine_tune,
            "batch": self._batch,
            "file": lambda: self._file("a.csv", b"text,label\nwarm,good\ncold,bad\n", "fine-tune"),
        }
        if is_fresh:
            return makers[kind]()  # it will be deleted or cancelled: nobody else is to be given it
        if kind not in self._made:
            self._made[kind] = makers[kind]()
        return self._made[kind]

    def _job(self, **fields: Any) -> str:
        webhook = {"webhook": "http://127.0.0.1:9/nobody"}
        body = {"kind": "embedding", "model": MODEL, "input": ["warm", "stone"], **webhook, **fields}
        job_id = str(self._post("/v1/jobs", json=body)["id"])
        if not fields:
            wait_until(lambda: self._is_done(job_id), within_s=60, what=f"{job_id} to succeed")
        return job_id

    def _is_done(self, job_id: str) -> bool:
        return bool(self._http.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()["status"] == "succeeded")

    def _fine_tune(self) -> str:
        body = {"model": MODEL, "training_file": self.give("file", is_fresh=True), "suffix": "mine"}
        return str(self._post("/v1/fine_tuning/jobs", json=body)["id"])

    def _batch(self) -> str:
        body_of_line = {"model": MODEL, "input": "a"}
        asked = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body_of_line}
        file_id = self._file("a.jsonl", json.dumps(asked).encode() + b"\n", "batch")
        body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        return str(self._post("/v1/batches", json=body)["id"])

    def _file(self, name: str, content: bytes, purpose: str) -> str:
        return str(self._post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})["id"])

    def _post(self, path: str, **request: Any) -> dict[str, Any]:
        answer = self._http.post(path, **request)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found


_things: list[Things] = []


@schemathesis.deserializer("application/x-ndjson")
def first_line(ctx: Any, response: Any) -> Any:
    """The first of the lines: the document describes one."""
    return json.loads(response.content.split(b"\n", 1)[0])


@schemathesis.hook
def before_call(ctx: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Put what exists in the place of made-up ids, in every other request that is meant to be good.

    An id of ours was given by an answer before, whose thing the request is about: it stays.
    """
    parameters = case.path_parameters
    if not parameters or case.meta is None or not case.meta.generation.mode.is_positive or next(_numbers) % 2:
        return
    things = _things[0] if _things else Things()
    _things[:] = [things]
    template, is_fresh = case.operation.path, case.method in ("DELETE",) or case.operation.path.endswith("/cancel")
    existing = {
        name: value
        for name, given in parameters.items()
        if not _OUR_ID.fullmatch(str(given)) and (value := _existing(things, name, template, is_fresh=is_fresh))
    }
    case.path_parameters = {**parameters, **existing}


def _existing(things: Things, name: str, template: str, *, is_fresh: bool) -> str | None:
    if name == "job_id":
        return things.give(_kind_of_job(template), is_fresh=is_fresh)
    if name == "file_id":
        return things.give("file", is_fresh=is_fresh)
    named = {"ref": MODEL, "name": "tiny", "task": "feature-extraction", "path": "tokenizer.json", "alias": "blue"}
    return named.get(name)


def _kind_of_job(template: str) -> str:
    if template.startswith("/v1/batches"):
        return "batch"
    if template.startswith("/v1/fine_tuning") or template.endswith(("/pause", "/resume", "/checkpoints")):
        return "fine-tune"
    return "waiting" if template.endswith("/cancel") else "done"
