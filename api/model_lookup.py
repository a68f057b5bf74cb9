"""From a model reference to the version that serves it, with its spec read once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from api.database import AsyncDatabase
from api.timed_cache import TimedCache, retrieve
from ondol.contract.errors import ContractError, ModelNotFound, OndolError
from ondol.contract.inference_checks import read_spec
from ondol.contract.model_ref import ModelRef, parse_model_ref
from ondol.contract.model_spec import ModelSpec
from ondol.sql.records import VersionRecord
from ondol.sql.unit_of_work import UnitOfWork

CALL_MAX_AGE_S = 0.5
_MAX_SPECS = 1024


@dataclass(frozen=True, slots=True)
class Served:
    """A version and what is known of it."""

    version: VersionRecord
    spec: ModelSpec


Found = dict[tuple[str, str], VersionRecord | OndolError]
"""By reference and project."""


class ModelLookup:
    """Resolves references. Jobs see an alias as it is now; calls as it was at most half a second ago."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._specs: OrderedDict[str, ModelSpec] = OrderedDict()
        self._recent: TimedCache[tuple[str, str], Served] = TimedCache(self._resolve_one, max_age_s=CALL_MAX_AGE_S)
        self._asked: set[tuple[str, str]] = set()
        self._reading: asyncio.Task[Found] | None = None
        self._following: asyncio.Task[Found] | None = None

    async def for_call(self, ref: str, project_id: str) -> Served:
        """The version that `ref` means; ModelNotFound, or InvalidPayload if it has another form."""
        return await self._recent.get((ref, project_id))

    async def resolve_all(self, refs: Iterable[str], project_id: str) -> dict[str, Served | OndolError]:
        """What each reference means now, or why it means nothing. Who asks during a read shares the next one."""
        wanted = {(ref, project_id) for ref in refs}
        if not wanted:
            return {}
        self._asked |= wanted
        if self._following is None:
            self._following = asyncio.create_task(self._read_asked(after=self._reading), name="model-lookup")
            self._following.add_done_callback(retrieve)
        found = await asyncio.shield(self._following)  # a caller that hangs up must not end the read of the others
        items = [(ref, found[ref, project_id]) for ref, _ in wanted]
        return {ref: item if isinstance(item, OndolError) else self._served(item) for ref, item in items}

    async def _read_asked(self, *, after: asyncio.Task[Found] | None) -> Found:
        """One read for all who have asked by the time that the read before it is over: it begins behind all of them."""
        if after is not None:
            await asyncio.wait([after])
        asked, self._asked = self._asked, set()
        self._reading, self._following = self._following, None
        return await self._database.read(lambda uow: {(ref, of): _resolve(uow, ref, of) for ref, of in asked})

    async def _resolve_one(self, key: tuple[str, str]) -> Served:
        ref, project_id = key
        parsed = parse_model_ref(ref)
        return self._served(await self._database.read(lambda uow: uow.models.resolve(parsed, project_id)))

    def _served(self, version: VersionRecord) -> Served:
        spec = self._specs.get(version.id)
        if spec is None:
            spec = read_spec(version.spec, ref=version.ref)
            self._specs[version.id] = spec
            if len(self._specs) > _MAX_SPECS:
                self._specs.popitem(last=False)
        return Served(version, spec)


def resolve_filter(uow: UnitOfWork, ref: ModelRef, project_id: str) -> str:
    """The reference as jobs hold it: an alias is resolved, a bare name stands for all its versions."""
    return uow.models.resolve(ref, project_id).ref if ref.alias else str(ref)


def _resolve(uow: UnitOfWork, ref: str, project_id: str) -> VersionRecord | OndolError:
    try:
        return uow.models.resolve(parse_model_ref(ref), project_id)
    except (ContractError, ModelNotFound) as exc:
        return exc
