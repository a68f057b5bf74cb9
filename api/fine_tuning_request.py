"""From OpenAI's request for a fine-tune to ours: the one place where their fields become options of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr

from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.files import check_file_id
from ondol.contract.fine_tune import DEFAULT_LEARNING_RATE
from ondol.contract.jobs import validated
from ondol.contract.kinds import JobKind
from ondol.contract.model_ref import check_model_name, parse_model_ref

NAME_WITHOUT_SUFFIX = "tuned"
"""What stands behind the base's name where neither a suffix nor an output name is given."""
SUPERVISED = "supervised"

_ENVELOPE = ("priority", "deadline_s", "not_before", "webhook")
"""Fields of our own request for a job that may stand beside OpenAI's."""


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


_OrAuto = BeforeValidator(_auto_is_none)


class _Lenient(BaseModel):
    """Ignores fields that it does not know, as the original does."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


class SupervisedHyperparameters(_Lenient):
    """OpenAI's hyperparameters; `auto` reads as None, which is our default."""

    n_epochs: Annotated[Annotated[float, Field(strict=True, gt=0, le=10_000)] | None, _OrAuto] = None
    batch_size: Annotated[Annotated[int, Field(strict=True, ge=1, le=4096)] | None, _OrAuto] = None
    learning_rate_multiplier: Annotated[Annotated[float, Field(strict=True, gt=0, le=10_000)] | None, _OrAuto] = None


class Supervised(_Lenient):
    """What `method.supervised` holds."""

    hyperparameters: SupervisedHyperparameters | None = None


class Method(_Lenient):
    """How it is trained; only `supervised` is run here."""

    type: StrictStr
    supervised: Supervised | None = None


class FineTuningRequest(_Lenient):
    """The body of `POST /v1/fine_tuning/jobs`; `options` are those of our own fine-tune jobs."""

    model: Annotated[StrictStr, Field(min_length=1, max_length=256)]
    training_file: StrictStr
    validation_file: StrictStr | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[StrictStr, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[StrictStr, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    integrations: list[Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AskedJob:
    """The body of `POST /v1/jobs` that was asked for, and where each of its options came from."""

    body: dict[str, Any]
    sources: dict[str, str]
    """OpenAI's field by the path of ours, for what OpenAI's fields gave."""

    def in_their_words(self, error: OndolError) -> OndolError:
        """`error` with the path of the field that the caller has sent."""
        theirs = self.sources.get(error.param or "")
        if theirs is None or error.param is None:
            return error
        error.message = error.message.replace(error.param, theirs)
        error.param = theirs
        return error


def read_request(value: Any) -> AskedJob:
    """The job that the body (parsed JSON) asks for; InvalidPayload with OpenAI's path of the field at fault.

    What is given twice, in OpenAI's fields and in `options`, is refused.
    """
    asked = validated(FineTuningRequest, value)
    _refuse_what_is_not_run(asked)
    options, sources = dict(asked.options), dict[str, str]()

    def put(name: str, value: Any, source: str, into: dict[str, Any] = options, where: str = "options") -> None:
        if value is None:
            return
        path = f"{where}.{name}"
        if name in into:
            raise InvalidPayload(f"{path} says what {source} says already; give one of them", param=path)
        into[name] = value
        sources[path] = source

    put("train_file", _file_id(asked.training_file, "training_file"), "training_file")
    put("validation_file", _file_id(asked.validation_file, "validation_file"), "validation_file")
    put("seed", asked.seed, "seed")
    put("output_name", _output_name(asked), "suffix")
    hyper, place = _hyperparameters(asked)
    ours = options.get("hyperparameters", {})
    if isinstance(ours, dict):
        ours = dict(ours)
        for name, number, source in _translated(hyper, options):
            put(name, number, f"{place}.{source}", ours, "options.hyperparameters")
        options["hyperparameters"] = ours
    envelope = {name: value[name] for name in _ENVELOPE if value.get(name) is not None}
    body = {"kind": JobKind.FINE_TUNE, "model": asked.model, "options": options, "metadata": asked.metadata or {}}
    return AskedJob(body | envelope, sources)


def default_learning_rate(options: dict[str, Any]) -> float:
    """The learning rate that a multiplier of one means."""
    return DEFAULT_LEARNING_RATE.get(str(options.get("backbone")), DEFAULT_LEARNING_RATE["full"])


def _refuse_what_is_not_run(asked: FineTuningRequest) -> None:
    if asked.method is not None and asked.method.type != SUPERVISED:
        raise InvalidPayload(
            f"fine-tunes by {asked.method.type[:80]!r} are not run here; this server trains encoders by supervised "
            'learning: method {"type": "supervised"}',
            param="method.type",
            code="method_not_supported",
        )
    if asked.integrations:
        raise InvalidPayload(
            "integrations are not supported; follow the job's events, or give a webhook in extra_body",
            param="integrations",
            code="integrations_not_supported",
        )


def _file_id(given: str | None, param: str) -> str | None:
    if given is None:
        return None
    try:
        return check_file_id(given)
    except OndolError as error:
        error.param = param
        raise


def _output_name(asked: FineTuningRequest) -> str | None:
    """Base and suffix, unless our own option names the model."""
    if asked.suffix is None and "output_name" in asked.options:
        return None
    base = parse_model_ref(asked.model).name
    return check_model_name(f"{base}-{asked.suffix or NAME_WITHOUT_SUFFIX}", param="suffix")


def _hyperparameters(asked: FineTuningRequest) -> tuple[SupervisedHyperparameters, str]:
    """The hyperparameters and the path under which they came: the method's, or those of the older field."""
    supervised = asked.method.supervised if asked.method is not None else None
    newer = supervised.hyperparameters if supervised is not None else None
    if newer is not None and asked.hyperparameters is not None and newer != asked.hyperparameters:
        raise InvalidPayload(
            "hyperparameters differ from method.supervised.hyperparameters; give the latter alone",
            param="hyperparameters",
        )
    if newer is not None:
        return newer, "method.supervised.hyperparameters"
    return asked.hyperparameters or SupervisedHyperparameters(), "hyperparameters"


def _translated(hyper: SupervisedHyperparameters, options: dict[str, Any]) -> list[tuple[str, float | None, str]]:
    """(our name, value, OpenAI's name) of each hyperparameter."""
    multiplier = hyper.learning_rate_multiplier
    rate = None if multiplier is None else multiplier * default_learning_rate(options)
    return [
        ("num_train_epochs", hyper.n_epochs, "n_epochs"),
        ("per_device_train_batch_size", hyper.batch_size, "batch_size"),
        ("learning_rate", rate, "learning_rate_multiplier"),
    ]
