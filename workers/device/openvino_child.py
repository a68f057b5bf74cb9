"""`python -m workers.device.openvino_child`: converts one version for OpenVINO and judges it beside torch.

A process of its own, because conversion takes much memory for a short while and must not be in the way of serving. It
writes the model and its report into the cache, or nothing; what is wrong goes to stderr and the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workers.absent import UNUSED, leave_out
from workers.device.lifeline import bind_to_parent

if TYPE_CHECKING:
    import torch

    from ondol.contract.model_spec import ModelSpec
    from workers.device.engine import Fidelity, FloatArray
    from workers.device.loading import LoadedModel
    from workers.device.openvino_cache import DtypeReport
    from workers.device.rows import Rows

_NICENESS = 5
_NUM_ONE_TEXTS = 12
_ONE_TEXT_TOKENS = 10
_MEASURE_S = 1.0
_LONG_TOKENS = 600
_SEED = 22


def main(argv: list[str]) -> int:
    """Convert, judge, keep; 0 when the entry is there."""
    parent_pid = os.getppid()
    parser = argparse.ArgumentParser(prog="workers.device.openvino_child")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ref", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parsed = parser.parse_args(argv)
    bind_to_parent(parent_pid)
    os.nice(_NICENESS)
    _be_first_to_go()
    leave_out(*UNUSED, "openvino_telemetry")  # nothing of a user's model is reported anywhere
    _convert(parsed.folder, parsed.ref, parsed.digest, parsed.cache, threads=parsed.threads)
    return 0


def _be_first_to_go() -> None:
    """Where memory runs out the kernel ends this process, and not the one that serves."""
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _convert(folder: Path, ref: str, digest: str, root: Path, *, threads: int) -> None:
    import torch

    from workers.device.device_kinds import device_kind, native_dtypes
    from workers.device.engine import ModelHandle
    from workers.device.fidelity import compare, worse
    from workers.device.loading import load_model, load_weights, read_spec
    from workers.device.openvino_cache import MODEL_FILE, ConversionCache, openvino_version
    from workers.device.openvino_model import HINTS

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    handle = ModelHandle("conversion", ref, folder, "float32")
    spec = read_spec(handle)
    cache = ConversionCache(root, device_kind=device_kind(device), openvino=openvino_version() or "")
    with cache.staging() as staged:
        _write(load_weights(handle, spec, device), staged / MODEL_FILE)
        reports: dict[str, DtypeReport] = {}
        reference: FloatArray | None = None
        by_length: Fidelity | None = None
        for dtype in (name for name in native_dtypes(device) if name in HINTS):
            loaded = load_model(ModelHandle("conversion", ref, folder, dtype), spec, device)
            if reference is None:
                reference, own_tokens = _alone(loaded, spec), tokens_of_lengths(loaded, spec)
            report = _judge(loaded, spec, staged / MODEL_FILE, reference, threads=threads)
            if by_length is None:  # float32, the first: what tracing has fixed is wrong by far more than rounding
                by_length = compare(tokens_of_lengths(loaded, spec), own_tokens)
            reports[dtype] = replace(report, fidelity=worse(report.fidelity, by_length))
        cache.keep(staged, digest, reports)


def _write(model: torch.nn.Module, xml: Path) -> None:
    """The base model's last states as a function of ids and mask of any size, in float32."""
    import openvino
    import torch

    class LastStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return states

    ids = torch.ones((2, 9), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # padding in the example, or tracing would leave the mask out
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every Python value that it fixes; fidelity is checked below
        converted = openvino.convert_model(
            LastStates().eval(), example_input={"input_ids": ids, "attention_mask": mask}
        )
    openvino.save_model(converted, str(xml), compress_to_fp16=False)


def _judge(loaded: LoadedModel, spec: ModelSpec, xml: Path, reference: FloatArray, *, threads: int) -> DtypeReport:
    """Fidelity of the built-in sentences in any company, and speed beside the torch model that is loaded."""
    from workers.device.openvino_cache import DtypeReport
    from workers.device.openvino_model import OpenVinoModel

    torch_rate, torch_one_s, _ = _speed(loaded)
    loaded.converted = OpenVinoModel(xml, dtype=loaded.handle.dtype, threads=threads, pad_token_id=spec.pad_token_id)
    rate, one_s, max_batch_tokens = _speed(loaded)
    return DtypeReport(_fidelity(loaded, spec, reference), max_batch_tokens, rate, torch_rate, one_s, torch_one_s)


def _fidelity(loaded: LoadedModel, spec: ModelSpec, reference: FloatArray) -> Fidelity:
    """The lower of the built-in sentences alone and all together."""
    from workers.device.encoding import encode
    from workers.device.fidelity import compare, fidelity_rows, worse
    from workers.device.warming import plain_plan

    rows = fidelity_rows(loaded.handle.path, spec, ref=loaded.handle.ref)
    together = encode(loaded, rows, plain_plan(loaded)).vectors
    return worse(compare(_alone(loaded, spec), reference), compare(together, reference))


def _alone(loaded: LoadedModel, spec: ModelSpec) -> FloatArray:
    from workers.device.encoding import encode_singly
    from workers.device.fidelity import fidelity_rows
    from workers.device.warming import plain_plan

    return encode_singly(loaded, fidelity_rows(loaded.handle.path, spec, ref=loaded.handle.ref), plain_plan(loaded))


def tokens_of_lengths(loaded: LoadedModel, spec: ModelSpec) -> FloatArray:
    """States [T, H] of all tokens of made-up rows, short and longer than any that was traced or that a window spans."""
    import numpy as np

    from ondol.contract.model_spec import PoolingMode
    from workers.device.checks import LAST_LAYER, Plan
    from workers.device.encoding import encode
    from workers.device.rows import Rows
    from workers.device.warming import count_embeddings

    longest = max(1, min(spec.max_length, spec.max_positions - spec.position_offset))
    lengths = [min(length, longest) for length in (1, 10, _LONG_TOKENS, 2 * (spec.sliding_window or 0) + 9)]
    num_tokens = count_embeddings(loaded)
    ids = np.random.default_rng(_SEED).integers(0, num_tokens, sum(lengths), dtype=np.int32)
    ids[ids == spec.pad_token_id] = (spec.pad_token_id + 1) % num_tokens
    plan = Plan(LAST_LAYER, (PoolingMode.NONE,), has_modules=False)
    return encode(loaded, Rows(np.asarray(lengths, dtype=np.int64), ids), plan).vectors


def _speed(loaded: LoadedModel) -> tuple[float, float, int]:
    """Tokens a second at the best budget, seconds of one short text, and that budget; CPU seconds of all threads."""
    from workers.device.budget import CPU_BUDGETS, measure_budget
    from workers.device.encoding import encode
    from workers.device.warming import plain_plan, rows_for

    plan, rows_of = plain_plan(loaded), rows_for(loaded)

    def run(rows: Rows) -> None:
        encode(loaded, rows, plan)

    found = measure_budget(CPU_BUDGETS, rows_of, run, limit_s=_MEASURE_S, clock=time.process_time)
    one = rows_of(_ONE_TEXT_TOKENS)
    one_s = min(_cpu_s(lambda: run(one)) for _ in range(_NUM_ONE_TEXTS))
    return found.tokens_per_s, one_s, found.max_batch_tokens


def _cpu_s(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
