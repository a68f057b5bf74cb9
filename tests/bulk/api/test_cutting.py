"""Which jobs are cut into shards when they are accepted, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.new_job import cut_inputs
from ondol.contract.cutting import MAX_SHARD_INPUTS, Slice, cut
from ondol.contract.errors import ContractError
from ondol.contract.inference_checks import TokenEstimate, estimate_tokens, token_estimate
from ondol.contract.jobs import INFERENCE_OPTIONS, InputLimits, parse_job
from ondol.contract.kinds import JobKind
from tests.http.api_process import SPEC

pytestmark = pytest.mark.unit

FILE_ID = "file_" + "0" * 26
EMBEDDING = INFERENCE_OPTIONS[JobKind.EMBEDDING]


def parse(**fields: Any) -> Any:
    return parse_job({"kind": "embedding", "model": "m", **fields}, InputLimits())


@given(st.lists(st.integers(1, 60)), st.integers(1, 50), st.integers(1, 9))
def test_slices_follow_each_other_and_keep_within_bounds(tokens: list[int], max_tokens: int, max_inputs: int) -> None:
    slices = list(cut(tokens, max_tokens=max_tokens, max_inputs=max_inputs))
    place = 0
    for one in slices:
        assert one.first_input == place
        assert one.estimated_tokens == sum(tokens[place : place + one.num_inputs])
        assert 1 <= one.num_inputs <= max_inputs
        assert one.estimated_tokens <= max_tokens or one.num_inputs == 1
        place += one.num_inputs
    assert place == len(tokens)


def test_many_short_inputs_are_cut_by_number() -> None:
    slices = list(cut([1] * (MAX_SHARD_INPUTS + 1), max_tokens=16_384))
    assert slices == [Slice(0, MAX_SHARD_INPUTS, MAX_SHARD_INPUTS), Slice(MAX_SHARD_INPUTS, 1, 1)]


def test_shards_hold_all_inputs_in_order() -> None:
    texts = [f"text {i} " * (i % 7 + 1) for i in range(100)]
    sizes = [len(text.encode()) for text in texts]
    shards = cut_inputs(texts, sizes, TokenEstimate(0.25, 64), max_tokens=100)
    assert [text for shard in shards for text in json.loads(shard.payload)] == texts
    assert [shard.number for shard in shards] == list(range(len(shards))) and len(shards) > 3
    assert all(shard.num_inputs == len(json.loads(shard.payload)) for shard in shards)


def test_token_ids_count_themselves() -> None:
    rows = [[1] * 30, [2] * 30, [3] * 30]
    shards = cut_inputs(rows, [120, 120, 120], TokenEstimate(99.0, 4), max_tokens=60)
    assert [(shard.num_inputs, shard.estimated_tokens) for shard in shards] == [(2, 60), (1, 30)]


@pytest.mark.parametrize("options", [{}, {"max_length": 3}, {"long_text": "window"}])
def test_the_estimate_of_a_text_is_that_of_a_job_with_that_text(options: dict[str, Any]) -> None:
    checked = EMBEDDING(**options)
    for text in ("a", "a few words", "many words " * 50):
        num_bytes = len(text)
        whole = estimate_tokens([text], num_bytes, checked, SPEC)
        assert token_estimate(checked, SPEC).of_text(num_bytes) == whole


def test_a_file_stands_in_place_of_input() -> None:
    job = parse(input_file="file_1", input_columns={"text": "body", "id": "key"})
    assert (job.num_inputs, job.inputs, job.sizes) == (0, [], [])
    assert json.loads(job.payload) == {"columns": {"text": "body", "text_pair": None, "id": "key"}}
    assert json.loads(parse(input_file="file_1").payload) == {"columns": None}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "input_file": "file_1"}, "input_file"),
        ({}, "input"),
        ({"input": "a", "input_columns": {"text": "body"}}, "input_columns"),
        ({"input_file": "file_1", "input_columns": {"text_pair": "b"}}, "input_columns.text_pair"),
        ({"input_file": "file_1", "input_columns": {"txt": "b"}}, "input_columns.txt"),
        ({"input_file": 7}, "input_file"),
        (
            {"kind": "fine-tune", "input_file": "file_1", "options": {"output_name": "x", "train_file": FILE_ID}},
            "input_file",
        ),
    ],
)
def test_fields_of_files_that_mean_nothing_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse(**fields)
    assert caught.value.param == param
