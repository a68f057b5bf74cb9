"""Labels: their order, several of them, numbers, and what looks like a slip."""

from __future__ import annotations

import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import Load, Read, csv_of, json_lines, message_of
from workers.training.data.examples import TextExample, TextRows
from workers.training.data.labels import in_order

pytestmark = pytest.mark.unit


def labelled(*labels: str, times: int = 2) -> tuple[str, str]:
    return "train.csv", csv_of(*((f"text {i}", label) for i, label in enumerate(labels * times)))


def test_integers_are_in_numeric_order_and_words_by_code_points() -> None:
    assert in_order({"10", "2", "1", "-3"}) == ["-3", "1", "2", "10"]
    assert in_order({"7", "007", "8"}) == ["007", "7", "8"]
    assert in_order({"10", "2", "a", "B"}) == ["10", "2", "B", "a"]
    assert in_order({"나", "가", "z"}) == ["z", "가", "나"]
    assert in_order({"1.5", "10"}) == ["1.5", "10"]


def test_an_equal_set_in_the_base_keeps_the_bases_order(load: Load) -> None:
    data = load(labelled("a", "b", "c"), base={"labels": ("c", "a", "b")}, validation_split=0)
    assert data.labels == data.report.labels == ["c", "a", "b"]
    assert data.train[:3] == [
        TextExample("text 0", None, 1),
        TextExample("text 1", None, 2),
        TextExample("text 2", None, 0),
    ]


def test_another_set_in_the_base_does_not(load: Load) -> None:
    assert load(labelled("b", "a"), base={"labels": ("b", "a", "c")}).labels == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        (
            "t.jsonl",
            json_lines(*({"text": t, "label": v} for t, v in (("1", ["b", "a"]), ("2", []), ("3", ["a"])))),
            {},
        ),
        ("t.csv", 'text,label\n1,"[""b"", ""a""]"\n2,[]\n3,"[""a""]"\n', {}),
        ("t.csv", "text,label\n1,b | a\n2,\n3,a\n", {"label_delimiter": "|"}),
    ],
)
def test_several_labels_are_a_json_list_or_are_delimited(
    load: Load, name: str, content: str, options: dict[str, str]
) -> None:
    data = load((name, content), validation_split=0, **options)
    assert data.problem_type == "multi_label_classification"
    assert data.labels == ["a", "b"]
    assert [example.label for example in data.train if isinstance(example, TextExample)] == [[0, 1], [], [0]]
    assert data.report.class_counts.train == {"a": 2, "b": 1}
    assert data.report.metric == "f1_macro"


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ('text,label\na,x\nb,"[""x"", ""y""]"\n', {}, "row 2 (line 3), column 'label': is a list"),
        (
            'text,label\na,"[""x""]"\nb,y\n',
            {},
            "row 2 (line 3), column 'label': 'y' is not a JSON list of labels; write",
        ),
        ("text,label\na,x\nb,x||y\n", {"label_delimiter": "|"}, "row 2 (line 3), column 'label': has an empty label"),
        (f"text,label\na,x\nb,{'long ' * 60}\n", {}, "row 2 (line 3), column 'label': a label of 300 characters"),
        (
            "text,label\na,1\nb,1_0\n",
            {"problem_type": "regression"},
            "row 2 (line 3), column 'label': '1_0' is not a number",
        ),
        ("text,label\na,1\nb,nan\n", {"problem_type": "regression"}, "'nan' is not a number"),
        ("text,label\na,1\nb,1e99\n", {"problem_type": "regression"}, "'1e99' is too large"),
    ],
)
def test_a_label_that_does_not_fit_is_named(read: Read, content: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read("train.csv", content, **options)
    assert words in message_of(caught)


def test_numbers_are_scores_only_where_regression_is_asked_for(load: Load) -> None:
    file = ("sts.csv", "sentence1,sentence2,score\na,b,3.600\nc,d,-1e-1\ne,f, 0\n")
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    data = load(file, columns=columns, problem_type="regression", validation_split=0)
    assert data.train == [TextExample("a", "b", 3.6), TextExample("c", "d", -0.1), TextExample("e", "f", 0.0)]
    assert (data.labels, data.report.metric) == (["score"], "spearman")
    assert data.report.class_counts.train == {}
    assert data.report.lengths.max == 5


def test_scores_without_regression_are_classes_with_a_warning(load: Load, read: Read) -> None:
    data = load(labelled(*(f"{i / 10}" for i in range(12))))
    assert data.problem_type == "single_label_classification"
    assert any(
        "12 different decimal numbers" in warning and "regression" in warning for warning in data.report.warnings
    )


def test_labels_that_differ_in_case_or_spaces_are_kept_and_warned_about(load: Load) -> None:
    data = load(labelled("2", "2   ", "good", "Good"))
    assert set(data.labels) == {"2", "2   ", "good", "Good"}
    assert sum("differ only in case or in spaces" in warning for warning in data.report.warnings) == 2


def test_one_number_in_every_row_is_nothing_to_learn(load: Load) -> None:
    with pytest.raises(InvalidPayload, match=r"train.csv has the number 3 in every row"):
        load(labelled("3", "3.0"), problem_type="regression")


def test_row_labels_are_not_lists_of_the_same_string(read: Read) -> None:
    rows = read("train.jsonl", json_lines({"text": "a", "label": ["x", "x"]}))
    assert isinstance(rows, TextRows)
    assert rows.labels == [("x",)]
