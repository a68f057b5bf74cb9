"""A running Ondol as its users see it: calls, jobs and imports over HTTP, each as one function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from ondol.contract.model_spec import ModelSpec
from tests.publishing import import_here, publish_folder
from tests.stack import new_stack
from tests.waiting import wait_until

FloatArray = np.ndarray[Any, np.dtype[np.float32]]

JOB_LIMIT_S = 240
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that succeeded, and its result as JSON."""

    job: dict[str, Any]
    result: dict[str, Any]

    @property
    def items(self) -> list[dict[str, Any]]:
        """The result's items, in input order."""
        found: list[dict[str, Any]] = self.result["data"]
        return found

    @property
    def vectors(self) -> FloatArray:
        """The outputs [N, H] of a job without item errors."""
        return np.array([item["output"] for item in self.items], dtype=np.float32)

    @property
    def tokens(self) -> list[int]:
        """Tokens by input."""
        return [item["tokens"] for item in self.items]


class Served:
    """`ondol up` with these settings, on a folder of its own; `close()` stops it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.stack = new_stack(folder, **settings)
        self.stack.start()
        self.data_dir = self.stack.data_dir
        self.url = self.stack.url
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def close(self) -> None:
        """Stop everything."""
        self.http.close()
        self.stack.stop()

    def call(self, model: str, value: Any, **fields: Any) -> httpx.Response:
        """The answer of `/v1/embeddings`, whatever it is."""
        return self.http.post("/v1/embeddings", json={"model": model, "input": value, **fields})

    def call_vectors(self, model: str, value: Any, **fields: Any) -> FloatArray:
        """Vectors [N, H] of a call."""
        answer = self.call(model, value, **fields)
        assert answer.status_code == 200, answer.text
        return np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)

    def submit(self, model: str, value: Any, **options: Any) -> httpx.Response:
        """The answer to an embedding job's submission."""
        body = {"kind": "embedding", "model": model, "input": value, "options": options}
        return self.http.post("/v1/jobs", json=body)

    def wait(self, job_id: str) -> dict[str, Any]:
        """The job in its terminal state."""

        def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", params={"wait": 20}).json()
            return job if job["status"] in TERMINAL else None

        job = wait_until(ended, within_s=JOB_LIMIT_S, what=f"{job_id} to end")
        assert job is not None
        return job

    def embed(self, model: str, value: Any, **options: Any) -> Finished:
        """An embedding job that succeeds, with its result."""
        submitted = self.submit(model, value, **options)
        assert submitted.status_code == 202, submitted.text
        job = self.wait(submitted.json()["id"])
        assert job["status"] == "succeeded", job["error"]
        return Finished(job, self.http.get(job["result_url"]).raise_for_status().json())

    def start_import(self, folder: Path, name: str) -> str:
        """Submit an import; the job's id."""
        body = {"kind": "import", "input": {"path": str(folder)}, "options": {"name": name}}
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def import_all(self, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
        """Results of imports by model name, all submitted before the first is waited for."""
        ids = {name: self.start_import(folder, name) for name, folder in folders.items()}
        for name, job_id in ids.items():
            job = self.wait(job_id)
            assert job["status"] == "succeeded", (name, job["error"])
        return {name: self.http.get(f"/v1/jobs/{job_id}/result").json() for name, job_id in ids.items()}

    def publish_all(self, folders: dict[str, Path]) -> dict[str, ModelSpec]:
        """Specs of models by name, imported in this process and published: what a test needs that is not about jobs."""
        specs = {}
        for name, folder in folders.items():
            target = self.data_dir.parent / "published" / name
            specs[name] = import_here(folder, target)
            store_url, database_url = f"file://{self.data_dir / 'store'}", f"sqlite:///{self.data_dir / 'ondol.db'}"
            publish_folder(target, name, store_url=store_url, database_url=database_url)
        return specs

    def workers(self) -> list[dict[str, Any]]:
        """Open sessions by worker, as `/v1/workers` lists them."""
        found: list[dict[str, Any]] = self.http.get("/v1/workers").raise_for_status().json()["data"]
        return sorted(found, key=lambda one: str(one["worker"]))

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of this stack whose command line has all these words."""
        children = psutil.Process(self.stack.pid).children(recursive=True)
        found = [process for process in children if set(words) <= set(process.cmdline())]
        assert found, f"no process with {words}"
        return found

    def log_events(self, process: str, event: str) -> list[dict[str, Any]]:
        """The structured lines of that event in a process's log."""
        lines = (self.data_dir / "log" / f"{process}.log").read_text(encoding="utf-8").splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line["event"] == event]


def unit(vectors: FloatArray | Sequence[FloatArray]) -> FloatArray:
    """Rows of [N, H] at length 1."""
    table = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(table, axis=-1, keepdims=True)
    return np.asarray(table / np.maximum(lengths, 1e-12), dtype=np.float32)
