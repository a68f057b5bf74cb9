"""From texts to rows without a device: what is special, what has no token, what windows weigh."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ondol.contract.model_spec import ModelSpec, PoolingMode
from ondol.contract.payloads import EmbeddingOptions
from workers.texts import tokenize

pytestmark = pytest.mark.unit

WORDS = {"[CLS]": 0, "[SEP]": 1, "the": 2, "warm": 3, "house": 4, "[UNK]": 5}
SPEC = ModelSpec(
    architecture="BertModel",
    model_type="bert",
    hidden_size=4,
    num_layers=1,
    vocab_size=len(WORDS),
    num_parameters=0,
    max_length=8,
    max_positions=8,
    dimensions=4,
)


def make_tokenizer(*, has_specials: bool) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if has_specials:
        tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
        )
    return tokenizer


def test_a_text_without_a_token_fails_alone() -> None:
    found = tokenize(["warm", "   "], EmbeddingOptions(), SPEC, make_tokenizer(has_specials=False))
    assert [row.input_index for row in found.rows] == [0]
    assert (found.errors[1].code, found.errors[1].param) == ("invalid_payload", "input[1]")
    assert (found.tokens, found.truncated) == ([1, 0], [False, False])


@pytest.mark.parametrize("value", [["the warm [SEP]"], [[0, 2, 3, 1, 1]]], ids=["text", "ids"])
def test_one_vector_a_token_marks_the_special_ones(value: list[str] | list[list[int]]) -> None:
    options = EmbeddingOptions(pooling=PoolingMode.NONE)
    [row] = tokenize(value, options, SPEC, make_tokenizer(has_specials=True)).rows
    assert row.ids.tolist() == [0, 2, 3, 1, 1]
    # What a person wrote is text, whatever it looks like; an id is what it is.
    assert row.specials == ((0, 4) if isinstance(value[0], str) else (0, 3, 4))


def test_windows_weigh_what_is_their_own() -> None:
    options = EmbeddingOptions(long_text="window", max_length=4)
    found = tokenize(["the warm house the warm"], options, SPEC, make_tokenizer(has_specials=True))
    assert [row.ids.tolist() for row in found.rows] == [[0, 2, 3, 1], [0, 4, 2, 1], [0, 3, 1]]
    assert [row.weight for row in found.rows] == [2, 2, 1]
    assert (found.tokens, found.truncated) == ([11], [False])
