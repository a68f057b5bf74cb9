"""`Ondol` and `AsyncOndol` have the same methods with the same arguments, each described."""

from __future__ import annotations

import inspect
import re

import pytest

from ondol import AsyncOndol, Ondol
from ondol.client.async_files import AsyncFiles
from ondol.client.async_jobs import AsyncJob, AsyncJobs
from ondol.client.async_models import AsyncModels
from ondol.client.sync_files import Files
from ondol.client.sync_jobs import Job, Jobs
from ondol.client.sync_models import Models

pytestmark = pytest.mark.unit

PAIRS = [(Ondol, AsyncOndol), (Jobs, AsyncJobs), (Job, AsyncJob), (Models, AsyncModels), (Files, AsyncFiles)]


def methods(kind: type) -> dict[str, object]:
    return {name: found for name, found in inspect.getmembers(kind, callable) if not name.startswith("_")}


def shape(method: object) -> str:
    """The signature, with the names of the asynchronous side as those of the blocking one."""
    assert callable(method)
    names = re.sub(r"ondol\.client\.\w+\.|(?<!httpx\.)\bAsync(?=[A-Z])", "", str(inspect.signature(method)))
    return names.replace("httpx.AsyncBaseTransport", "httpx.BaseTransport")


@pytest.mark.parametrize(("blocking", "awaiting"), PAIRS, ids=lambda kind: kind.__name__)
def test_the_two_clients_have_the_same_methods(blocking: type, awaiting: type) -> None:
    ours, theirs = methods(blocking), methods(awaiting)
    assert ours.keys() == theirs.keys()
    assert {name: shape(method) for name, method in ours.items()} == {
        name: shape(method) for name, method in theirs.items()
    }
    assert shape(blocking) == shape(awaiting)  # what each is made with


@pytest.mark.parametrize("kind", [kind for pair in PAIRS for kind in pair], ids=lambda kind: kind.__name__)
def test_every_method_says_what_it_gives(kind: type) -> None:
    assert all(inspect.getdoc(method) for method in methods(kind).values())
    hints = {name: inspect.signature(method) for name, method in methods(kind).items() if callable(method)}
    assert all(signature.return_annotation is not inspect.Signature.empty for signature in hints.values())
