"""From inputs to token ids: prompts, special tokens, cutting, windows. Never silent: what was cut is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding, Tokenizer

from ondol.contract.errors import InputTooLong, InvalidPayload, OndolError
from ondol.contract.jobs import Inputs
from ondol.contract.model_spec import ModelSpec
from ondol.contract.payloads import EmbeddingOptions
from workers.rows import IntArray


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids [T] of one row, the input it belongs to, leading tokens to leave out of pooling, its weight."""

    ids: IntArray
    input_index: int
    skip: int = 0
    weight: int = 1


@dataclass(slots=True)
class Tokenized:
    """Rows of all inputs; `tokens` and `truncated` by input; `errors` of inputs that have no row."""

    rows: list[TokenRow] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    errors: dict[int, OndolError] = field(default_factory=dict)


def prompt_of(options: EmbeddingOptions, spec: ModelSpec) -> str:
    """The text that goes before each input; InvalidPayload for a prompt the model does not have."""
    if options.prompt is not None:
        return options.prompt
    name = options.prompt_name
    if options.input_type is not None:
        name = spec.query_prompt_name if options.input_type == "query" else spec.document_prompt_name
        return spec.prompts.get(name, "") if name else ""
    name = name or spec.default_prompt_name
    if name is None:
        return ""
    if name not in spec.prompts:
        offered = ", ".join(sorted(spec.prompts)) or "none"
        raise InvalidPayload(f"the model has no prompt {name!r}; it has {offered}", param="options.prompt_name")
    return spec.prompts[name]


def tokenize(inputs: Inputs, options: EmbeddingOptions, spec: ModelSpec, tokenizer: Tokenizer) -> Tokenized:
    """Rows of all inputs. An input that cannot be run gets an error; the others are not touched by it."""
    limit = min(options.max_length or spec.max_length, spec.max_length)
    if inputs and isinstance(inputs[0], list):
        return _from_ids(inputs, options, spec, limit)
    prompt = prompt_of(options, spec)
    texts = [prompt + str(text) for text in inputs]
    skip = 0 if spec.pooling.include_prompt or not prompt else _prompt_length(prompt, tokenizer)
    found = Tokenized()
    for i, encoding in enumerate(tokenizer.encode_batch_fast(texts)):
        _add_text(found, i, encoding, options=options, limit=limit, skip=skip, tokenizer=tokenizer)
    return found


def _add_text(
    found: Tokenized,
    index: int,
    encoding: Encoding,
    *,
    options: EmbeddingOptions,
    limit: int,
    skip: int,
    tokenizer: Tokenizer,
) -> None:
    ids = encoding.ids
    if len(ids) <= limit:
        found.rows.append(TokenRow(np.array(ids, dtype=np.int32), index, skip=min(skip, len(ids) - 1)))
        found.tokens.append(len(ids))
        found.truncated.append(False)
        return
    if options.long_text == "window":
        windows = _windows(encoding, limit, tokenizer)
        found.rows += [TokenRow(ids, index, weight=weight) for ids, weight in windows]
        found.tokens.append(sum(len(ids) for ids, _ in windows))
        found.truncated.append(False)
        return
    if options.truncate == "error":
        _refuse(found, index, num_tokens=len(ids), limit=limit)
        return
    cut = _cut(encoding, limit, options.truncate, tokenizer)
    found.rows.append(TokenRow(cut, index, skip=min(skip, len(cut) - 1)))
    found.tokens.append(len(cut))
    found.truncated.append(True)


def _from_ids(inputs: Sequence[list[int]], options: EmbeddingOptions, spec: ModelSpec, limit: int) -> Tokenized:
    found = Tokenized()
    for i, ids in enumerate(inputs):
        if max(ids) >= spec.vocab_size:
            found.errors[i] = InvalidPayload(
                f"token id {max(ids)} is outside the model's vocabulary of {spec.vocab_size}", param=f"input[{i}]"
            )
            found.tokens.append(0)
            found.truncated.append(False)
        elif len(ids) > limit and options.truncate == "error":
            _refuse(found, i, num_tokens=len(ids), limit=limit)
        else:
            kept = ids[-limit:] if options.truncate == "left" else ids[:limit]
            found.rows.append(TokenRow(np.array(kept, dtype=np.int32), i))
            found.tokens.append(len(kept))
            found.truncated.append(len(kept) < len(ids))
    return found


def _refuse(found: Tokenized, index: int, *, num_tokens: int, limit: int) -> None:
    found.errors[index] = InputTooLong(
        f"input {index} has {num_tokens} tokens, the model takes {limit}; shorten it, or set truncate to right or left",
        param=f"input[{index}]",
    )
    found.tokens.append(num_tokens)
    found.truncated.append(False)


def _cut(encoding: Encoding, limit: int, side: str, tokenizer: Tokenizer) -> IntArray:
    """The ids of a text that is too long, cut so that its special tokens stay."""
    content = _content(encoding)
    room = max(1, limit - tokenizer.num_special_tokens_to_add(False))
    kept = content[-room:] if side == "left" else content[:room]
    return _with_specials(encoding, kept)[:limit]


def _windows(encoding: Encoding, limit: int, tokenizer: Tokenizer) -> list[tuple[IntArray, int]]:
    """The whole text in windows of at most `limit` tokens, with the content tokens of each as its weight."""
    content = _content(encoding)
    room = max(1, limit - tokenizer.num_special_tokens_to_add(False))
    parts = [content[start : start + room] for start in range(0, len(content), room)]
    return [(_with_specials(encoding, part), len(part)) for part in parts]


def _content(encoding: Encoding) -> IntArray:
    begin, end = _bounds(encoding)
    return np.array(encoding.ids[begin:end], dtype=np.int32)


def _with_specials(encoding: Encoding, content: IntArray) -> IntArray:
    begin, end = _bounds(encoding)
    ids = encoding.ids
    return np.concatenate([np.array(ids[:begin], dtype=np.int32), content, np.array(ids[end:], dtype=np.int32)])


def _bounds(encoding: Encoding) -> tuple[int, int]:
    """Where the text's own tokens begin and end between the special tokens that the template puts around it."""
    mask = encoding.special_tokens_mask
    begin, end = 0, len(mask)
    while begin < end and mask[begin]:
        begin += 1
    while end > begin and mask[end - 1]:
        end -= 1
    return begin, end


def _prompt_length(prompt: str, tokenizer: Tokenizer) -> int:
    """Tokens at the head of a row that are the prompt's (a leading special token is, a closing one is not)."""
    encoding = tokenizer.encode(prompt)
    mask = encoding.special_tokens_mask
    return len(mask) - (1 if mask and mask[-1] else 0)
