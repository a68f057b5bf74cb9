"""From a record in SQL to a result: which form the result of each kind is stored in, and where its bytes are."""

from __future__ import annotations

from typing import Any

from api.entities import StoredEntities
from api.label_scores import StoredScores
from api.stored_items import StoredItems
from api.vectors import StoredVectors
from models_store.result_blobs import ResultBlobs
from ondol.contract.kinds import JobKind
from ondol.sql.records import ResultRecord

STORED: dict[JobKind, type[StoredItems]] = {
    JobKind.EMBEDDING: StoredVectors,
    JobKind.TEXT_CLASSIFICATION: StoredScores,
    JobKind.TOKEN_CLASSIFICATION: StoredEntities,
}
"""Kinds whose results have one item an input."""


def stored_bytes(blobs: ResultBlobs, record: ResultRecord) -> bytes:
    """The data of a result, from SQL or from its blob; blocks. ModelStoreError if the blob is damaged or away."""
    if record.data is None and record.blob_path is not None:
        return blobs.read(record.blob_path, sha256=record.sha256)
    return record.data or b""


def plain_result(kind: JobKind, record: ResultRecord) -> dict[str, Any]:
    """The result of a job that has no items: an import or a fine-tune."""
    result: dict[str, Any] = record.summary["result"]
    return {"object": f"{kind.replace('-', '_')}.result"} | result
