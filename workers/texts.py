"""From inputs to token ids: prompts, special tokens, cutting, windows. Never silent: what was cut is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding, Tokenizer

from ondol.contract.errors import InputTooLong, InvalidPayload, OndolError
from ondol.contract.jobs import Inputs
from ondol.contract.model_spec import ModelSpec, PoolingMode
from ondol.contract.payloads import EmbeddingOptions
from workers.rows import IntArray


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids [T] of one row, the input it belongs to, leading tokens to leave out of pooling, its weight.

    `specials` are the places of its special tokens; `type_ids` [T] say which text of a pair a token belongs to (None:
    zeros).
    """

    ids: IntArray
    input_index: int
    skip: int = 0
    weight: int = 1
    specials: tuple[int, ...] = ()
    type_ids: IntArray | None = None


@dataclass(slots=True)
class Tokenized:
    """Rows of all inputs; `tokens` and `truncated` by input; `errors` of inputs that have no row."""

    rows: list[TokenRow] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    errors: dict[int, OndolError] = field(default_factory=dict)

    def add(self, rows: list[TokenRow], *, is_cut: bool) -> None:
        """Add the next input, by its rows."""
        self.rows += rows
        self.tokens.append(sum(len(row.ids) for row in rows))
        self.truncated.append(is_cut)

    def refuse(self, index: int, error: OndolError, *, num_tokens: int) -> None:
        """Add the next input, which is the one with that index: it fails."""
        self.errors[index] = error
        self.tokens.append(num_tokens)
        self.truncated.append(False)


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
    """Rows of all inputs. An input that cannot be run gets an error; the others are not touched by it.

    InvalidPayload when `max_length` leaves no room for a text beside its special tokens.
    """
    limit = min(options.max_length or spec.max_length, spec.max_length)
    if inputs and isinstance(inputs[0], list):
        return _from_ids(inputs, options, spec, limit, tokenizer)
    check_room(limit, tokenizer.num_special_tokens_to_add(False))
    prompt = prompt_of(options, spec)
    texts = [prompt + str(text) for text in inputs]
    skip = 0 if spec.pooling.include_prompt or not prompt else _prompt_length(prompt, tokenizer)
    found = Tokenized()
    for i, encoding in enumerate(tokenizer.encode_batch_fast(texts)):
        ids = encoding.ids
        if not ids:
            found.refuse(i, no_token(i), num_tokens=0)
        elif (
            len(ids) <= limit and options.pooling is not PoolingMode.NONE
        ):  # nearly all of them: no need to look inside
            row = TokenRow(np.array(ids, dtype=np.int32), i, min(skip, len(ids) - 1))
            found.add([row], is_cut=False)
        else:
            _fit(found, i, _Text(ids, *own_bounds(encoding), skip=skip), limit, options)
    return found


def check_room(limit: int, num_specials: int) -> None:
    """Return if a row of `limit` tokens holds any of a text's own; InvalidPayload if not."""
    if limit <= num_specials:
        raise InvalidPayload(
            f"max_length {limit} leaves no room for a text beside {num_specials} special tokens",
            param="options.max_length",
        )


def no_token(index: int) -> InvalidPayload:
    """The error of an input of which nothing is left to run."""
    return InvalidPayload("the input has no token", param=f"input[{index}]")


def too_long(index: int, num_tokens: int, limit: int) -> InputTooLong:
    """The error of an input that may not be cut."""
    message = f"the input has {num_tokens} tokens, the model takes {limit}; "
    return InputTooLong(message + "shorten it, or set truncate to right or left", param=f"input[{index}]")


def own_bounds(encoding: Encoding) -> tuple[int, int]:
    """Where the text's own tokens begin and end between the special tokens that the template puts around it."""
    mask = encoding.special_tokens_mask
    begin, end = 0, len(mask)
    while begin < end and mask[begin]:
        begin += 1
    while end > begin and mask[end - 1]:
        end -= 1
    return begin, end


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an input that fits: token ids [T], how many to leave out of pooling, its weight among the parts."""

    ids: IntArray
    skip: int = 0
    weight: int = 1
    specials: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Text:
    """A tokenised text: its own tokens lie from `begin` to before `end`, special tokens around them.

    `skip`: leading tokens that are the prompt's, the special tokens before it counted; 0 where nothing is left out.
    `special_ids`: what counts as special inside, where the tokens were given as ids.
    """

    ids: list[int]
    begin: int
    end: int
    skip: int = 0
    special_ids: frozenset[int] = frozenset()

    def piece(self, start: int, stop: int) -> _Piece:
        """The text's own tokens from `start` to before `stop`, between its special tokens."""
        own = self.ids[self.begin + start : self.begin + stop]
        ids = [*self.ids[: self.begin], *own, *self.ids[self.end :]]
        num_prompt = min(max(0, self.skip - self.begin - start), stop - start)
        skip = self.skip if start == 0 else self.begin + num_prompt if num_prompt else 0
        inside = range(self.begin, self.begin + len(own))
        specials = [i for i, token_id in enumerate(ids) if i not in inside or token_id in self.special_ids]
        weight = stop - start - num_prompt
        return _Piece(np.array(ids, dtype=np.int32), min(skip, len(ids) - 1), weight, tuple(specials))


def _pieces(text: _Text, limit: int, options: EmbeddingOptions) -> list[_Piece]:
    """The text as one piece where it fits; else in windows, or its first or last tokens."""
    num_own = text.end - text.begin
    room = limit - (len(text.ids) - num_own)
    if num_own <= room:
        return [text.piece(0, num_own)]
    if options.long_text == "window":
        windows = [text.piece(start, min(start + room, num_own)) for start in range(0, num_own, room)]
        return [window for window in windows if window.weight] or windows[-1:]
    return [text.piece(num_own - room, num_own) if options.truncate == "left" else text.piece(0, room)]


def _fit(found: Tokenized, index: int, text: _Text, limit: int, options: EmbeddingOptions) -> None:
    """Add the rows of a text, or its error if it is too long and neither cutting nor windows are wanted."""
    is_cut = len(text.ids) > limit and options.long_text != "window"
    if is_cut and options.truncate == "error":
        found.refuse(index, too_long(index, len(text.ids), limit), num_tokens=len(text.ids))
    else:
        _add(found, index, _pieces(text, limit, options), is_cut=is_cut)


def _add(found: Tokenized, index: int, pieces: list[_Piece], *, is_cut: bool) -> None:
    rows = [TokenRow(piece.ids, index, piece.skip, max(1, piece.weight), piece.specials) for piece in pieces]
    found.add(rows, is_cut=is_cut)


def _from_ids(
    inputs: Sequence[list[int]], options: EmbeddingOptions, spec: ModelSpec, limit: int, tokenizer: Tokenizer
) -> Tokenized:
    """Rows of token ids, special tokens as given: none is added, and cutting keeps none of them."""
    found = Tokenized()
    special_ids = _special_ids(tokenizer) if options.pooling is PoolingMode.NONE else frozenset()
    for i, ids in enumerate(inputs):
        if max(ids) >= spec.vocab_size:
            message = f"token id {max(ids)} is outside the model's vocabulary of {spec.vocab_size}"
            found.refuse(i, InvalidPayload(message, param=f"input[{i}]"), num_tokens=0)
        else:
            _fit(found, i, _Text(ids, 0, len(ids), special_ids=special_ids), limit, options)
    return found


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _prompt_length(prompt: str, tokenizer: Tokenizer) -> int:
    """Tokens at the head of a row that are the prompt's (a leading special token is, a closing one is not)."""
    encoding = tokenizer.encode(prompt)
    mask = encoding.special_tokens_mask
    return len(mask) - (1 if mask and mask[-1] else 0)
