"""Cuts one file as its plan says: rows in, payloads and an index out, in memory that does not grow with the file."""

from __future__ import annotations

from ondol.contract.errors import InvalidPayload
from workers.sharding.batch_lines import BatchLines
from workers.sharding.cutter import ShardCutter
from workers.sharding.plan import BatchFormat, CutPlan, CutReport
from workers.sharding.table_rows import inputs_of, used_columns
from workers.training.data.examples import Source
from workers.training.data.problems import Problems, file_error
from workers.training.data.tables import open_table

PARAM = "input_file"


def cut_file(plan: CutPlan) -> CutReport:
    """Write the shards of `plan.path` into `plan.work_dir`. InvalidPayload names what is wrong with the file.

    Lists of JSON (one list, not lines) are the one format that is held in memory as a whole.
    """
    source = Source(plan.filename, PARAM)
    report = _cut_table(plan, source) if plan.batch is None else _cut_batch(plan, plan.batch, source)
    if not report.num_inputs:
        what = "rows" if plan.batch is None else "lines"
        raise file_error(source, f"has no {what}; add some")
    if report.num_refused == report.num_inputs:
        raise InvalidPayload(f"{plan.filename} has no input that can be run: {report.first_refusal}", param=PARAM)
    return report


def _cut_table(plan: CutPlan, source: Source) -> CutReport:
    problems = Problems(source)
    with open_table(plan.path, source, problems) as table:
        used = used_columns(plan, table.columns, source)
        with ShardCutter(plan, has_ids=used.id is not None) as cutter:
            for one in inputs_of(table, used, plan, problems):
                cutter.add((one,))
            problems.raise_if_any()
            return cutter.finish()


def _cut_batch(plan: CutPlan, batch: BatchFormat, source: Source) -> CutReport:
    lines = BatchLines(batch, plan, source)
    with plan.path.open("rb") as file, ShardCutter(plan, has_ids=True) as cutter:
        for group in lines.groups(file):
            cutter.add(group)
        return cutter.finish()
