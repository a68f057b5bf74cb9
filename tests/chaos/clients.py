"""Applications under chaos: threads that submit, repeat, cancel, retry and read, and write down what they were told."""

from __future__ import annotations

import base64
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.chaos.history import History, Kind
from tests.chaos.oracle import Oracle
from tests.chaos.world import MODEL
from tests.training_jobs.client import rows_of_weather

TIMEOUT_S = 10.0
MAX_REPEATS = 60
"""Of a keyed request whose outcome is unknown, while the run lasts."""
_WORDS = ("warm", "floor", "stone", "fire", "winter", "kettle", "smoke", "clay", "한옥", "온돌", "ember", "ash")
_SHARD_TEXTS = (30, 90)
_FINE_TUNE = {
    "hyperparameters": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.001},
    "checkpoint_every_s": 1,
    "validation_split": 0.2,
    "seed": 7,
}


@dataclass(slots=True)
class Shared:
    """What all clients know: inputs by tag, and jobs that were accepted."""

    inputs: dict[str, Sequence[str]] = field(default_factory=dict)
    jobs: list[tuple[str, str]] = field(default_factory=list)
    """(job id, tag)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: its kind, the status if there was an answer, and the parsed body of a good one."""

    kind: Kind
    status: int | None
    body: Any
    code: str | None


class Client(threading.Thread):
    """One application with a random generator of its own; ends some time after `stop` is set."""

    def __init__(
        self, name: str, url: str, seed: int, history: History, oracle: Oracle, shared: Shared, stop: threading.Event
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._rng = random.Random(seed)
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        self._history = history
        self._oracle = oracle
        self._shared = shared
        self._stopped = stop
        self._num_tags = 0
        self._used_key: str | None = None
        self.crash: BaseException | None = None

    def run(self) -> None:
        """One operation after the other until told to stop."""
        operations: list[tuple[int, Callable[[], None]]] = [
            (30, self._submit),
            (8, self._batch),
            (3, self._shards),
            (5, self._refused),
            (10, self._cancel),
            (6, self._retry),
            (16, self._get),
            (12, self._result),
            (6, self._events),
            (8, self._call),
        ]
        weights, calls = zip(*operations, strict=True)
        try:
            while not self._stopped.is_set():
                self._rng.choices(calls, weights)[0]()
                self._stopped.wait(self._rng.uniform(0.0, 0.12))
        except BaseException as exc:  # noqa: BLE001 - the thread's edge: the run fails with it
            self.crash = exc
        finally:
            self.close()

    def close(self) -> None:
        """Let go of its connections; a thread does so itself."""
        self._http.close()

    def fine_tune(self) -> None:
        """Upload a small file and train on it; to be called instead of starting the thread."""
        tag = self._tag(())
        rows = rows_of_weather(48)
        for _ in range(MAX_REPEATS):
            answer = self._send("upload", "POST", "/v1/files", files={"file": ("rows.csv", rows.encode())})
            if answer.kind is Kind.OK or self._stopped.wait(0.3):
                break
        if answer.kind is not Kind.OK:
            return
        options = _FINE_TUNE | {"train_file": answer.body["id"], "output_name": f"trained-{tag}"}
        body = {"kind": "fine-tune", "model": MODEL, "options": options, "metadata": {"tag": tag}}
        self._repeat("fine_tune", "/v1/jobs", body, [tag])

    def look_at(self, job: tuple[str, str]) -> None:
        """Read what there is of a job, once."""
        self._send("events", "GET", f"/v1/jobs/{job[0]}/events", job=job)
        self._see_result(job)

    def _submit(self) -> None:
        tag = self._tag(self._texts(self._rng.randint(1, 4)))
        body = self._job(tag)
        if self._rng.random() < 0.15:
            body["deadline_s"] = round(self._rng.uniform(0.2, 6.0), 2)
        body["priority"] = self._rng.choice(("interactive", "normal", "bulk"))
        self._repeat("submit", "/v1/jobs", body, [tag])

    def _batch(self) -> None:
        tags = [self._tag(self._texts(1)) for _ in range(self._rng.randint(5, 40))]
        self._repeat("batch", "/v1/jobs/batch", {"jobs": [self._job(tag) for tag in tags]}, tags)

    def _shards(self) -> None:
        tag = self._tag(self._texts(self._rng.randint(*_SHARD_TEXTS)))
        self._repeat("shards", "/v1/jobs", self._job(tag), [tag])

    def _refused(self) -> None:
        """Another body under a key that has its job, or a job beside others that no worker could run."""
        tag = self._tag(self._texts(1))
        if self._used_key is not None and self._rng.random() < 0.5:
            self._send("submit", "POST", "/v1/jobs", json=self._job(tag), key=self._used_key, tags=[tag])
            return
        good = self._tag(self._texts(1))
        jobs = [self._job(tag) | {"options": {"pooling": "by hand"}}, self._job(good)]
        answer = self._send("batch", "POST", "/v1/jobs/batch", json={"jobs": jobs}, tags=[tag, good])
        if answer.kind is Kind.OK:
            self._shared.jobs += list(answer.body)

    def _repeat(self, op: str, path: str, body: Any, tags: Sequence[str]) -> None:
        """Submit; with a key the same request is repeated until its outcome is known, and sometimes once more."""
        key = f"key-{tags[0]}" if self._rng.random() < 0.6 or op == "fine_tune" else None
        again = self._rng.random() < 0.3
        for _ in range(MAX_REPEATS):
            answer = self._send(op, "POST", path, json=body, key=key, tags=tags)
            if answer.kind is Kind.OK:
                self._shared.jobs += list(answer.body)
                self._used_key = key if op == "submit" and key is not None else self._used_key
            if key is None or not (again or answer.kind is Kind.UNKNOWN):
                return
            again = again and answer.kind is Kind.UNKNOWN
            self._stopped.wait(self._rng.uniform(0.05, 0.5))

    def _cancel(self) -> None:
        if job := self._some_job():
            self._send("cancel", "POST", f"/v1/jobs/{job[0]}/cancel", job=job)

    def _retry(self) -> None:
        if job := self._some_job():
            self._send("retry", "POST", f"/v1/jobs/{job[0]}/retry", job=job)

    def _get(self) -> None:
        if job := self._some_job():
            wait = self._rng.choice((0, 0, 1, 3))
            self._send("get", "GET", f"/v1/jobs/{job[0]}", params={"wait": wait} if wait else None, job=job)

    def _events(self) -> None:
        """Events come without gap: those behind a number begin with the next one."""
        if job := self._some_job():
            after = self._rng.choice((0, 0, 1, 2))
            answer = self._send("events", "GET", f"/v1/jobs/{job[0]}/events", params={"after": after}, job=job)
            if answer.kind is Kind.OK:
                seqs = [event["seq"] for event in answer.body["data"]]
                assert seqs == list(range(after + 1, after + 1 + len(seqs))), (job, after, seqs)

    def _result(self) -> None:
        if job := self._some_job():
            self._see_result(job)

    def _see_result(self, job: tuple[str, str]) -> None:
        """The job, and what it gave: a success has a result from the moment that it is seen."""
        seen = self._send("get", "GET", f"/v1/jobs/{job[0]}", job=job)
        if seen.kind is Kind.OK and seen.body["status"] == "succeeded" and seen.body["kind"] == "embedding":
            self._send("result", "GET", f"/v1/jobs/{job[0]}/result", job=job, was_succeeded=True)

    def _call(self) -> None:
        texts = self._texts(self._rng.randint(1, 3))
        self._send("call", "POST", "/v1/embeddings", json={"model": MODEL, "input": texts}, texts=texts)

    def _send(
        self,
        op: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        files: Any = None,
        params: Any = None,
        key: str | None = None,
        tags: Sequence[str] = (),
        job: tuple[str, str] | None = None,
        texts: Sequence[str] = (),
        **known: Any,
    ) -> Answer:
        said: dict[str, Any] = {"client": self.name, **known}
        if job is not None:
            said["job"] = job[0]
        if tags:
            said |= {"tags": list(tags), "key": key}
        if texts:
            said["tokens"] = self._oracle.num_tokens(texts)
        call = self._history.invoke(op, **said)
        headers = {"Idempotency-Key": key} if key is not None else None
        try:
            got = self._http.request(method, path, json=json, files=files, params=params, headers=headers)
        except httpx.TransportError as exc:
            self._history.end(Kind.UNKNOWN, op, call, **said, status=None, code=type(exc).__name__)
            return Answer(Kind.UNKNOWN, None, None, None)
        answer = _answer_of(got)
        told: dict[str, Any] = {"status": answer.status, "code": answer.code}
        if answer.kind is Kind.OK:
            answer, more = self._read(op, answer, tags, job, texts)
            told |= more
        self._history.end(answer.kind, op, call, **(said | told))
        return answer

    def _read(
        self, op: str, answer: Answer, tags: Sequence[str], job: tuple[str, str] | None, texts: Sequence[str]
    ) -> tuple[Answer, dict[str, Any]]:
        """What a good answer says, for the history."""
        body = answer.body
        if tags:
            shown = body["data"] if op == "batch" else [body]
            jobs = [(str(one["id"]), tag) for one, tag in zip(shown, tags, strict=True) if "id" in one]
            refused = [tag for one, tag in zip(shown, tags, strict=True) if "id" not in one]
            return Answer(answer.kind, answer.status, jobs, None), {"jobs": jobs, "refused": refused}
        if op in ("get", "cancel", "retry"):
            return answer, {"status": body["status"], "attempt": body["attempt"]}
        if op == "call":
            return answer, {"is_right": self._oracle.is_right(texts, _vectors(body["data"], "embedding"))}
        if op == "result":
            assert job is not None
            given = self._shared.inputs[job[1]]
            errors = [item for item in body["data"] if "error" in item]
            is_shard_lost = bool(errors) and len(given) >= _SHARD_TEXTS[0]
            is_right = is_shard_lost or self._oracle.is_right(given, _vectors(body["data"], "output"))
            return answer, {"is_right": is_right}
        return answer, {}

    def _some_job(self) -> tuple[str, str] | None:
        """A recent job more often than an old one."""
        jobs = self._shared.jobs
        if not jobs:
            return None
        recent = jobs[-60:] if self._rng.random() < 0.8 else jobs
        return self._rng.choice(recent)

    def _job(self, tag: str) -> dict[str, Any]:
        return {"kind": "embedding", "model": MODEL, "input": list(self._shared.inputs[tag]), "metadata": {"tag": tag}}

    def _texts(self, num: int) -> list[str]:
        return [" ".join(self._rng.choices(_WORDS, k=self._rng.randint(1, 6))) for _ in range(num)]

    def _tag(self, texts: Sequence[str]) -> str:
        self._num_tags += 1
        tag = f"{self.name}-{self._num_tags}"
        if texts:
            self._shared.inputs[tag] = tuple(texts)
        return tag


def _answer_of(got: httpx.Response) -> Answer:
    """What the status says of the effect: 5xx may have had one, 4xx has none."""
    body = got.json() if got.headers.get("content-type", "").startswith("application/json") else None
    code = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        code = body["error"].get("code")
    kind = Kind.OK if got.status_code < 300 else Kind.UNKNOWN if got.status_code >= 500 else Kind.FAIL
    return Answer(kind, got.status_code, body, code)


def _vectors(items: Sequence[dict[str, Any]], key: str) -> np.ndarray[Any, Any]:
    """Vectors [N, D] of items in input order, as float lists or base64 of little-endian float32."""
    rows = [item[key] for item in sorted(items, key=lambda one: int(one["index"]))]
    if rows and isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows])
    return np.array(rows, dtype=np.float32)
