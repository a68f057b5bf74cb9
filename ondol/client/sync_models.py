"""`client.models`, blocking."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import TYPE_CHECKING

from ondol.client import model_flows
from ondol.client.model_flows import AliasInfo, AliasMove, Expected, ModelFile
from ondol.client.records import ModelInfo

if TYPE_CHECKING:
    from ondol.client.sync_client import Ondol
    from ondol.client.sync_jobs import Job


class Models:
    """Models of this project's server."""

    def __init__(self, client: Ondol) -> None:
        self._client = client

    def list(self) -> list[ModelInfo]:
        """All models that requests can name."""
        return self._client.run(model_flows.list_models(self._client.policy))

    def get(self, ref: str) -> ModelInfo:
        """What the server says about one model: labels, metrics, lineage, aliases; NoSuchThing if there is none."""
        return self._client.run(model_flows.get_model(ref, self._client.policy))

    def card(self, ref: str) -> str | None:
        """The model card, Markdown; None if the version has none."""
        return self._client.run(model_flows.get_card(ref, self._client.policy))

    def files(self, ref: str) -> builtins.list[ModelFile]:
        """The files of a version with their digests."""
        return builtins.list(self._client.run(model_flows.list_files(ref, self._client.policy)).files)

    def aliases(self, name: str) -> builtins.list[AliasInfo]:
        """Aliases of the model, by name."""
        return self._client.run(model_flows.list_aliases(name, self._client.policy))

    def alias_history(self, name: str, alias: str | None = None, *, limit: int = 100) -> builtins.list[AliasMove]:
        """Moves of the model's aliases (or of one), newest first, among its latest `limit`."""
        return self._client.run(model_flows.alias_history(name, self._client.policy, alias=alias, limit=limit))

    def set_alias(
        self, name: str, alias: str, version: int, *, expected: Expected = "any", reason: str = ""
    ) -> AliasInfo:
        """Let the alias point to a version, now and for all workers within seconds.

        With `expected` only if it points to that version now (None: if there is no such alias); StateConflict
        (`alias_moved`) says where it points instead.
        """
        policy = self._client.policy
        return self._client.run(model_flows.set_alias(name, alias, version, policy, expected=expected, reason=reason))

    def delete_alias(self, name: str, alias: str, *, expected: int | None = None, reason: str = "") -> None:
        """Remove the alias, with `expected` only if it points to that version now; its history stays."""
        self._client.run(model_flows.delete_alias(name, alias, self._client.policy, expected=expected, reason=reason))

    def export(self, ref: str, folder: str | Path) -> str:
        """Bring a version to the local `folder`, which appears whole and verified or not at all; gives `name:3`.

        `from_pretrained(folder)` of transformers takes it. InvalidPayload if the folder exists and is not empty.
        """
        with model_flows.appearing_folder(folder) as staging:
            return self._client.run(model_flows.export_files(ref, staging, self._client.policy)).ref

    def delete(self, ref: str) -> None:
        """Delete the version `name:3`: new requests do not find it. StateConflict while an alias points to it."""
        self._client.run(model_flows.delete_version(ref, self._client.policy))

    def import_(self, path: str | Path, name: str, *, convert_bin: bool = False) -> Job:
        """The job that imports the folder `path` of the server's machine as the next version of `name`."""
        return self._client.jobs.submit(model_flows.import_request(path, name, convert_bin=convert_bin))
