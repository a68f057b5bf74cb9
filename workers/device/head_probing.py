"""The load-time probe of a task head: which layout gives the logits that the whole model gives each row alone?

Nothing is believed of an architecture: rows of different lengths, in two orders, with type ids where the model has
them, are compared in float32. A head that is right in no packed layout makes the whole version padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ondol.contract.errors import DeviceError, DeviceLost, ModelRefused, OutOfDeviceMemory
from ondol.contract.model_spec import ModelSpec
from workers.device.device_errors import device_errors
from workers.device.heads import PACKED_LAYOUTS, Layout, TaskHead
from workers.device.packed import PACKED_ATTENTION
from workers.device.probing import TOLERANCE, in_float32, probe_rows, set_attention, worst_difference
from workers.device.rows import Rows


@dataclass(frozen=True, slots=True)
class _Probe:
    """Single rows, and the logits of each alone, one tensor a row."""

    rows: Sequence[Rows]
    alone: Sequence[torch.Tensor]


def settle_layout(
    head: TaskHead, spec: ModelSpec, *, own_attention: str, why_padded: str | None, ref: str
) -> str | None:
    """Set the head's layout, and its base model's attention with it; None if rows go packed, else why they do not.

    `why_padded` is what the probe of the base model found, `own_attention` what the model was loaded with. Runs the
    head, so it is warm afterwards. ModelRefused when the head gives another number of classes than `ondol.json` names.
    """
    with device_errors("the probe of the head"), torch.inference_mode():
        with in_float32(head.model):
            set_attention(head.model, own_attention)
            probe = _run_alone(head, spec)
            _check_width(probe, spec, ref)
            if why_padded is None:
                set_attention(head.base, PACKED_ATTENTION)
                why_padded = _settle_packed(head, probe)
            if why_padded is not None:
                set_attention(head.model, own_attention)
                reason = _why_wrong(head, Layout.PADDED, probe)
                head.layout = Layout.PADDED if reason is None else Layout.ALONE
        head.logits(probe.rows[0])
    return why_padded


def _settle_packed(head: TaskHead, probe: _Probe) -> str | None:
    """Set the first packed layout that is right; None, or why there is none."""
    reasons = []
    for layout in PACKED_LAYOUTS:
        reason = _why_wrong(head, layout, probe)
        if reason is None:
            head.layout = layout
            return None
        reasons.append(f"{layout}: {reason}")
    return f"the head is right in no packed layout ({'; '.join(reasons)})"


def _run_alone(head: TaskHead, spec: ModelSpec) -> _Probe:
    rows = probe_rows(spec, head.base)
    return _Probe(rows, [head.logits_by(Layout.PADDED, row).values for row in rows])


def _check_width(probe: _Probe, spec: ModelSpec, ref: str) -> None:
    width = probe.alone[0].shape[-1]
    if width != len(spec.labels):
        raise ModelRefused(
            f"the head of {ref} gives {width} classes, its ondol.json names {len(spec.labels)}; import the model again"
        )


def _why_wrong(head: TaskHead, layout: Layout, probe: _Probe) -> str | None:
    """None if rows together have the logits of each alone, else the difference or the error that says why not."""
    try:
        with device_errors(f"the head over {layout}"):
            for order in (list(range(len(probe.rows))), list(reversed(range(len(probe.rows))))):
                expected = torch.cat([probe.alone[i] for i in order])
                found = head.logits_by(layout, Rows.joined([probe.rows[i] for i in order])).values
                if found.shape != expected.shape:
                    return f"logits have shape {tuple(found.shape)}, {tuple(expected.shape)} was expected"
                worst = worst_difference(found, expected)
                if not worst <= TOLERANCE:
                    return f"logits differ from those of the rows alone by {worst:.1e}"
    except (OutOfDeviceMemory, DeviceLost):
        raise
    except DeviceError as exc:
        return exc.message
    return None
