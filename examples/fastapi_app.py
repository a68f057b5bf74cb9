"""A FastAPI application that embeds in the background, is told when it is done, and searches at once.

    ONDOL_WEBHOOK_SECRET=$(ondol webhooks secret) uvicorn examples.fastapi_app:app --port 8000

`POST /documents` answers with a job at once; Ondol calls `/hooks/ondol` when its vectors are there. The address must be
one that Ondol may reach: a private one needs ONDOL_WEBHOOK_NETWORKS=127.0.0.0/8. `GET /search` embeds the question.
"""

import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray

from ondol import AsyncOndol, InvalidWebhook, ItemErrors, OndolError, verify_webhook

MODEL = "all-minilm-l6-v2"
HOOK = os.environ.get("HOOK_URL", "http://127.0.0.1:8000/hooks/ondol")

waiting: dict[str, list[str]] = {}
texts: list[str] = []
vectors: list[NDArray[np.float32]] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the whole application."""
    async with AsyncOndol() as client:
        app.state.ondol = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/documents", status_code=202)
async def add(documents: list[str]) -> dict[str, str]:
    """Accept documents; a durable job embeds them, whatever dies meanwhile."""
    batch = uuid.uuid4().hex
    waiting[batch] = documents  # before the job is submitted: its end may be told before its acceptance is answered
    try:
        job = await app.state.ondol.jobs.create(
            kind="embedding", model=MODEL, input=documents, metadata={"batch": batch}, webhook=HOOK
        )
    except OndolError:
        del waiting[batch]
        raise
    return {"job": job.id}


@app.post("/hooks/ondol")
async def told(request: Request) -> dict[str, bool]:
    """Take the vectors of a job that has ended. Ondol tries again until this answers with 2xx, so it may come twice."""
    try:
        event = verify_webhook(await request.body(), request.headers, secret=os.environ["ONDOL_WEBHOOK_SECRET"])
    except InvalidWebhook as error:
        raise HTTPException(400, str(error)) from error
    batch = event["data"]["metadata"]["batch"]
    found = await vectors_of(event)
    documents = waiting.pop(batch, [])  # only now: what fails above is told again
    for document, vector in zip(documents, found, strict=False):
        if not np.isnan(vector).any():
            texts.append(document)
            vectors.append(vector)
    return {"ok": True}


async def vectors_of(event: Mapping[str, Any]) -> NDArray[np.float32]:
    """One row a document, of NaN where a document failed; no rows where the whole job did."""
    if event["type"] != "job.succeeded":
        return np.empty((0, 0), dtype=np.float32)
    try:
        found: NDArray[np.float32] = await app.state.ondol.jobs.vectors(event["data"]["id"])
    except ItemErrors as error:
        found = error.partial  # telling it again would fail again: the documents that it names never get a vector
    return found


@app.get("/search")
async def search(q: str) -> list[dict[str, str | float]]:
    """The nearest documents, best first."""
    if not vectors:
        return []
    scores = np.stack(vectors) @ await app.state.ondol.embed(q, model=MODEL)
    return [{"text": texts[i], "score": float(scores[i])} for i in np.argsort(-scores)[:3]]
