"""The parts by themselves: the histogram, what stands between a code and a label, ports, a port that is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from ondol.contract.devices import DeviceSpec
from ondol.contract.errors import InvalidPayload, NotReady
from ondol.control.up_metrics import metrics_ports
from ondol.metrics.batch_histogram import BatchHistogram
from ondol.metrics.registry import as_label
from ondol.metrics.server import serve_metrics
from ondol.settings import ReconcilerSettings

pytestmark = pytest.mark.unit

BOUNDS = (0.1, 1.0, 10.0)
TWO = (DeviceSpec("cpu:0", (0,)), DeviceSpec("cpu:1", (1,)))


def test_many_values_at_once_are_what_they_are_one_by_one() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    at_once = BatchHistogram("ondol_x_seconds", "X.", ("stage",), bounds=BOUNDS, registry=ours)
    one_by_one = Histogram("ondol_x_seconds", "X.", ("stage",), buckets=BOUNDS, registry=theirs)
    values = [0.0, 0.1, 0.10001, 1.0, 5.0, 10.0, 11.0]
    at_once.observe(values, "load")
    for value in values:
        one_by_one.labels("load").observe(value)
    for suffix, labels in (
        ("count", {}),
        ("sum", {}),
        *(("bucket", {"le": le}) for le in ("0.1", "1.0", "10.0", "+Inf")),
    ):
        name, wanted = f"ondol_x_seconds_{suffix}", {"stage": "load", **labels}
        assert ours.get_sample_value(name, wanted) == theirs.get_sample_value(name, wanted) is not None


@pytest.mark.parametrize("code", ["job_9: the text", "", "A", "x" * 49, "a b", "модель"])
def test_what_is_no_code_is_no_label(code: str) -> None:
    assert as_label(code) == "other"
    assert as_label("model_not_found") == "model_not_found"


def test_each_process_of_up_has_a_port_that_does_not_move() -> None:
    assert metrics_ports(9401, TWO) == {
        "reconciler": 9401,
        "intake": 9402,
        "worker-cpu0": 9403,
        "trainer-cpu0": 9404,
        "worker-cpu1": 9405,
        "trainer-cpu1": 9406,
    }
    with pytest.raises(InvalidPayload, match="METRICS_PORT"):
        metrics_ports(65_531, TWO)


def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ReconcilerSettings(data_dir=tmp_path, metrics_port=port)
        with pytest.raises(NotReady, match=f"port {port}: .* in use; set ONDOL_METRICS_PORT to a free port"):
            serve_metrics(settings, CollectorRegistry())
