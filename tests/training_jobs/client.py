"""Fine-tunes over HTTP as an application sends them, with files that a tiny model learns from in seconds."""

from __future__ import annotations

from typing import Any

import httpx

from tests.waiting import wait_until

JOB_LIMIT_S = 180
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
WORDS = {"warm": ("fire", "stone", "floor"), "cold": ("snow", "wind", "ice"), "wet": ("rain", "river", "sea")}


def rows_of_weather(num: int) -> str:
    """CSV with `num` rows of three classes that a few words tell apart."""
    lines = ["text,label"]
    for i in range(num):
        label = list(WORDS)[i % 3]
        words = WORDS[label]
        lines.append(f"the {words[i % 3]} of day {i} and the {words[(i // 3) % 3]},{label}")
    return "\n".join(lines) + "\n"


class TrainingClient:
    """Every method raises AssertionError with the server's words when it refuses."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def __enter__(self) -> TrainingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def upload(self, content: str | bytes, filename: str = "train.csv") -> str:
        """A file's id."""
        data = content.encode() if isinstance(content, str) else content
        answer = self.http.post("/v1/files", files={"file": (filename, data)}, data={"purpose": "fine-tune"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def fine_tune(self, train_file: str, name: str = "weather", **options: Any) -> str:
        """A fine-tune's id."""
        body = {
            "kind": "fine-tune",
            "model": "tiny",
            "options": {"train_file": train_file, "output_name": name, **options},
        }
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        shown: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return shown

    def wait(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """The job in one of the states (default: ended); fails at once when it ended in another."""
        wanted = set(statuses) or set(TERMINAL)

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in wanted | (set() if job["status"] in TERMINAL else {job["status"]}), job
            return job if job["status"] in wanted else None

        found = wait_until(look, within_s=JOB_LIMIT_S, what=f"{job_id} to be {' or '.join(sorted(wanted))}")
        assert found is not None
        return found

    def wait_for_step(self, job_id: str, step: int) -> int:
        """The progress once the training has come to `step`."""

        def look() -> int | None:
            job = self.job(job_id)
            assert job["status"] not in TERMINAL, job
            return job["progress"]["done"] if job["status"] == "running" and job["progress"]["done"] >= step else None

        found = wait_until(look, within_s=JOB_LIMIT_S, what=f"step {step} of {job_id}")
        assert found is not None
        return found

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """All events."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.http.get(
                f"/v1/jobs/{job_id}/events", params={"after": found[-1]["seq"] if found else 0}
            ).raise_for_status()
            found += page.json()["data"]
            if not page.json()["has_more"]:
                return found

    def result(self, job_id: str) -> dict[str, Any]:
        """The result."""
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}/result").raise_for_status().json()
        return found

    def weights_digest(self, job_id: str) -> str:
        """SHA-256 of the weights that the fine-tune published."""
        return next(str(f["sha256"]) for f in self.result(job_id)["files"] if f["path"] == "model.safetensors")

    def messages(self, job_id: str) -> list[str]:
        """What the `message` events say."""
        return [str(e["data"]["message"]) for e in self.events(job_id) if e["type"] == "message"]
