"""The registry of one process, with what every process tells of itself; and what keeps label values few."""

from __future__ import annotations

import re
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics

_CODE = re.compile(r"[a-z][a-z0-9_]{0,47}")


def new_registry(process: str) -> CollectorRegistry:
    """A registry for one process, with its memory, CPU and files (`process_…`) and `ondol_build_info`."""
    # A second series beside each counter, its time of creation, tells nothing that Prometheus does not see by itself.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Gauge(
        "ondol_build_info",
        "Always 1; which version of Ondol the process runs.",
        ("version", "process"),
        registry=registry,
    )
    build.labels(version("ondol"), process).set(1)
    return registry


def as_label(code: str) -> str:
    """An error code as a label value: a code has the form of one, whatever else came by wire is `other`."""
    return code if _CODE.fullmatch(code) else "other"
