"""What can be configured: one frozen class per process, read once in its composition root from `ONDOL_…` or `.env`.

A unit stands in the name (`_s` seconds, `_mb` mebibytes, `_kb` kibibytes, `_gb` gibibytes). A bad value stops the
start: `load_settings` turns it into one line and exit code 2. No default is a secret.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PositiveInt, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from ondol.contract.errors import BrokerUnavailable
from ondol.setting_values import at_least_an_hour, is_loopback, split_by_comma, url_of
from ondol.url_password import with_password

PREFIX = "ONDOL_"
EXIT_WRONG_USE = 2
DEFAULT_SECRETS_DIR = Path("/run/secrets")
"""Where Docker and Kubernetes put secrets; read only if it is there."""

Seconds = Annotated[float, Field(gt=0)]
Days = Annotated[float, AfterValidator(at_least_an_hour), Field(ge=0, le=36_500)]
DeviceName = Annotated[str, Field(pattern=r"^(cpu|cuda):[0-9]{1,2}$")]
HttpAddress = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$", max_length=2048)]
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
DatabaseAddress = Annotated[str, AfterValidator(lambda url: url_of(url, "sqlite", "postgresql", "postgresql+psycopg"))]
RedisAddress = Annotated[str, AfterValidator(lambda url: url_of(url, "redis", "rediss", "unix"))]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
Auth = Literal["keys", "off"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["auto", "torch", "openvino"]


class _Settings(BaseSettings):
    """How every class here is read: prefix, `.env`, files of secrets, frozen, empty values ignored."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given, then the environment, then `.env`, then files of the folder that those name."""
        sources = (init_settings, env_settings, dotenv_settings)
        named = (source().get("secrets_dir") for source in sources)
        folder = Path(next((name for name in named if name), DEFAULT_SECRETS_DIR)).expanduser()
        # A folder that is named and cannot be read is refused with the other bad values; the source would only warn.
        can_be_read = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
        files = SecretsSettingsSource(settings_cls, secrets_dir=folder) if can_be_read else file_secret_settings
        return (*sources, files)


class LogSettings(_Settings):
    """How a process logs: all that a child reads which needs no address and no password."""

    log_level: LogLevel = Field("info", description="Least severe event that is logged.")
    log_format: LogFormat = Field("console", description="Lines for machines (json) or for people (console).")


class CommonSettings(LogSettings):
    """What every process of one Ondol shares: where data, database, Redis and models are, and how it logs."""

    data_dir: AbsolutePath = Field(
        Path("ondol-data"), description="Folder of everything that Ondol keeps on this host."
    )
    database_url: DatabaseAddress | None = Field(
        None, description="SQLAlchemy URL (sqlite or postgresql+psycopg); default: SQLite in the data folder."
    )
    redis_url: RedisAddress | None = Field(
        None, description="Redis or Valkey URL, a database of its own; default: the one that `ondol up` starts."
    )
    store_url: str | None = Field(
        None, description="fsspec URL of the model store; default: the folder `store` in the data folder."
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="Port of this process's /metrics; the api has them on its own port anyway."
    )
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, max_length=255, description="Address on which /metrics is served."
    )
    redis_password: SecretStr | None = Field(
        None, description="Password for a redis_url that holds none; may stand in a file (see secrets_dir)."
    )
    database_password: SecretStr | None = Field(
        None, description="Password for a database_url that holds none; may stand in a file (see secrets_dir)."
    )
    secrets_dir: AbsolutePath | None = Field(
        None,
        description="Folder of files named like settings, as in ondol_redis_password, for what the environment leaves"
        " open; default: /run/secrets, if it is there.",
    )
    public_url: HttpAddress | None = Field(
        None, description="Where people reach the api, for links to jobs; default: the address it binds."
    )
    lease_s: Seconds = Field(6.0, ge=2, le=600, description="How long a worker session is believed without renewal.")
    renew_s: Seconds = Field(2.0, ge=0.2, le=300, description="How often a worker session is renewed.")

    @field_validator("secrets_dir")
    @classmethod
    def _secrets_dir_is_there(cls, value: Path | None) -> Path | None:
        if value is not None and not (value.is_dir() and os.access(value, os.R_OK | os.X_OK)):
            raise ValueError("no such folder, or not to be read")
        return value

    @model_validator(mode="after")
    def _renewals_fit_the_lease(self) -> Self:
        if self.renew_s * 2 > self.lease_s - 1:
            raise ValueError("renew_s must leave room for two renewals and one second within lease_s")
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of what lives as long as one `ondol up`: URLs, secrets, the lock."""
        return self.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        """Folder of the rotated logs of the supervised processes."""
        return self.data_dir / "log"

    def resolved_database_url(self) -> str:
        """The database URL, with the default and a separate password filled in: a secret."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir / 'ondol.db'}"
        return with_password(self.database_url, self.database_password)

    def resolved_redis_url(self) -> str:
        """The Redis URL with its password, a secret, or the one `ondol up` left here; BrokerUnavailable if neither."""
        if self.redis_url:
            return with_password(self.redis_url, self.redis_password)
        try:
            return (self.run_dir / "redis.url").read_text().strip()
        except FileNotFoundError as exc:
            message = f"no Redis: set {PREFIX}REDIS_URL, or start `ondol up` on the data folder {self.data_dir}"
            raise BrokerUnavailable(message) from exc

    def resolved_store_url(self) -> str:
        """The model store's URL, with the default filled in."""
        return self.store_url or f"file://{self.data_dir / 'store'}"


class WindowSettings(_Settings):
    """How much is rung at once; the same for api, worker and reconciler, or they would disagree on what is full."""

    window_messages: PositiveInt = Field(
        4, le=64, description="Unfinished messages a device for each of the classes interactive and normal."
    )
    window_bulk_messages: PositiveInt = Field(2, le=64, description="Unfinished bulk messages or shards a device.")
    message_jobs: PositiveInt = Field(256, le=1_000, description="Most jobs that one message names.")
    message_tokens: PositiveInt = Field(
        16_384, ge=256, le=1_048_576, description="Most estimated tokens that one message names; more becomes shards."
    )


class WatchSettings(_Settings):
    """How patient a Celery node is with its own ears."""

    unheard_s: Seconds = Field(
        8.0,
        ge=1,
        le=600,
        description="How long work may lie for a worker or trainer node that hears nothing, before it connects to"
        " Redis anew; if twelve more seconds do not help, it ends, to be started again.",
    )


class AdmissionSettings(_Settings):
    """How much may be submitted; the same for the api and the intake."""

    max_text_kb: PositiveInt = Field(1_024, le=65_536, description="Largest single text, in UTF-8.")
    max_inputs: PositiveInt = Field(10_000_000, le=1_000_000_000, description="Most inputs of one job.")
    max_queued_jobs: PositiveInt = Field(
        1_000_000, le=1_000_000_000, description="Waiting jobs at which new ones are refused with 429."
    )
    max_queued_tokens: PositiveInt = Field(
        1_000_000_000, le=10**15, description="Waiting estimated tokens at which new jobs are refused with 429."
    )
    project_max_queued_jobs: PositiveInt | None = Field(
        None, le=1_000_000_000, description="The same of one project, unless it has its own; default: no limit apart."
    )
    project_max_queued_tokens: PositiveInt | None = Field(
        None, le=10**15, description="The same of one project, in estimated tokens."
    )
    max_queued_fine_tunes: PositiveInt = Field(1_000, le=1_000_000, description="Waiting fine-tunes; then 429.")
    project_max_queued_fine_tunes: PositiveInt | None = Field(
        None, le=1_000_000, description="The same of one project."
    )
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        max_length=64,
        description="Private networks that webhooks may reach, as in 10.0.0.0/8, comma-separated; default: none.",
    )

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _networks_by_comma(cls, value: object) -> object:
        return split_by_comma(value)

    @field_validator("webhook_networks")
    @classmethod
    def _networks_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value


class ApiSettings(CommonSettings, WindowSettings, AdmissionSettings):
    """The HTTP face."""

    host: str = Field("127.0.0.1", min_length=1, max_length=255, description="Address that the api binds.")
    port: int = Field(8400, ge=0, le=65_535, description="Port that the api binds; 0 takes a free one.")
    auth: Auth = Field("keys", description="Whether requests need an API key; `off` only on a loopback address.")
    max_body_mb: PositiveInt = Field(32, le=4_096, description="Largest request body.")
    max_file_mb: PositiveInt = Field(512, le=1_048_576, description="Largest file that may be uploaded.")
    metrics: bool = Field(True, description="Whether the api serves /metrics, to whoever reaches it, without a key.")
    call_timeout_s: Seconds = Field(30.0, le=600, description="Longest that a call may take before it answers 504.")
    database_limit_s: Seconds = Field(
        15.0, ge=1, le=600, description="Longest wait for one read or write of the database before it answers 503."
    )
    max_event_streams: PositiveInt = Field(2_000, le=100_000, description="Event streams open at a time; then 503.")
    project_max_event_streams: PositiveInt = Field(1_000, le=100_000, description="The same of one project; then 429.")
    max_calls_waiting: PositiveInt = Field(2_000, le=1_000_000, description="Calls that wait at a time; then 429.")
    project_max_calls_waiting: PositiveInt = Field(1_000, le=1_000_000, description="The same of one project.")
    max_bodies_mb: PositiveInt = Field(256, le=65_536, description="Bodies held of all requests together; then 503.")
    client_gone_s: Seconds = Field(300.0, ge=1, le=3_600, description="A client that takes no byte so long is left.")
    max_wait_s: Seconds = Field(60.0, le=600, description="Longest `?wait=` of a long poll.")
    idempotency_ttl_s: Seconds = Field(
        86_400.0, ge=60, le=2_592_000, description="How long an Idempotency-Key is remembered."
    )
    collect_days: Days = Field(
        1.0, description="Days between two collections of what nothing in the store needs; 0: only `ondol models gc`."
    )
    device_for_calls: Literal["auto"] | DeviceName = Field(
        "auto", description="Device that answers calls; auto: one that is warm for the model, else the least loaded."
    )

    flower_url: HttpAddress | None = Field(
        None, description="Where people reach Flower, for links from jobs; default: the Flower that `ondol up` starts."
    )
    webhook_timeout_s: Seconds = Field(10.0, le=120, description="Longest wait for a webhook's answer.")
    webhook_first_pause_s: Seconds = Field(
        5.0, le=3_600, description="Pause after the first refused try of a webhook; doubled each time, an hour at most."
    )
    webhook_give_up_s: Seconds = Field(
        86_400.0, ge=1, le=2_592_000, description="Age at which an undelivered webhook is given up."
    )

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(f"auth off is accepted only on a loopback address, not on {self.host}")
        return self


class WorkerSettings(CommonSettings, WindowSettings, WatchSettings):
    """One worker and its device process."""

    devices: str = Field(
        "auto", max_length=200, description="Devices of this host: auto, cuda:0,cuda:1, or cpu:2x1 (two of one core)."
    )
    device: DeviceName = Field("cpu:0", description="The one device of this worker.")
    cores: Annotated[tuple[int, ...] | None, NoDecode] = Field(
        None, description="CPU cores this worker is pinned to, comma-separated; default: all that it may use."
    )
    threads: PositiveInt | None = Field(
        None, le=256, description="Compute threads of the device process; default: one a core."
    )
    dtype: Dtype = Field("auto", description="Number format of the weights; auto: the fastest that is faithful.")
    engine: Engine = Field(
        "auto",
        description="What runs models; auto: torch, and OpenVINO for those where it is installed, faithful and faster.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), max_length=64, description="Model references that are loaded and kept warm from the start, comma-separated."
    )
    max_batch_tokens: PositiveInt | None = Field(
        None, ge=16, le=1_048_576, description="Tokens a forward pass; default: measured for each model at load."
    )
    device_memory_mb: PositiveInt | None = Field(
        None, ge=64, description="Memory for warm models; default: measured on the device."
    )
    handler_threads: PositiveInt = Field(64, ge=4, le=512, description="Messages that a worker handles at a time.")
    grace_s: Seconds = Field(10.0, le=600, description="Time to hand work back after SIGTERM.")
    cache_max_gb: Annotated[float, Field(gt=0, le=100_000)] = Field(
        20.0, description="Most that the local cache of model files keeps."
    )
    forward_limit_s: Seconds = Field(
        120.0, ge=1, le=3_600, description="Longest forward pass before the device process is replaced."
    )
    forward_stall_s: Seconds = Field(
        15.0,
        ge=0.5,
        le=3_600,
        description="Time that a forward pass is given at least, where the speed of its model is known; if it takes"
        " twenty times as long as expected, too, the device process is replaced.",
    )
    max_attempts: PositiveInt = Field(5, le=100, description="Attempts of a job whose errors may be tried again.")

    @field_validator("cores", mode="before")
    @classmethod
    def _cores_by_comma(cls, value: object) -> object:
        return split_by_comma(value)

    @field_validator("models", mode="before")
    @classmethod
    def _models_by_comma(cls, value: object) -> object:
        return split_by_comma(value)

    @model_validator(mode="after")
    def _every_window_has_threads(self) -> Self:
        # The windows of all classes together must be smaller than the pool, or a full class would starve the others.
        needed = 2 * self.window_messages + self.window_bulk_messages
        if needed >= self.handler_threads:
            raise ValueError(f"handler_threads must be over {needed}, the windows of all classes together")
        return self

    def resolved_max_batch_tokens(self) -> int:
        """Tokens a forward pass until they are measured, with the default of the kind of device filled in."""
        return self.max_batch_tokens or (16_384 if self.device.startswith("cuda:") else 1_024)


class TrainerSettings(CommonSettings, WindowSettings, WatchSettings):
    """One trainer node: it checks the files of fine-tunes, and supervises one training at a time on its device."""

    device: DeviceName = Field("cpu:0", description="The one device of this trainer.")
    cores: Annotated[tuple[int, ...] | None, NoDecode] = Field(
        None, description="CPU cores this trainer is pinned to, comma-separated; default: all that it may use."
    )
    threads: PositiveInt | None = Field(
        None, le=256, description="Compute threads of a training; default: one a core. Frozen in the job that trains."
    )
    cache_max_gb: Annotated[float, Field(gt=0, le=100_000)] = Field(
        20.0, description="Most that the local cache of model files keeps."
    )
    max_attempts: PositiveInt = Field(5, le=100, description="Attempts of a job whose errors may be tried again.")
    train_grace_s: Seconds = Field(
        60.0, le=3_600, description="Time to write a checkpoint and hand the job back after SIGTERM."
    )
    train_stall_s: Seconds = Field(
        20.0,
        ge=1,
        le=3_600,
        description="Silence of a training, and ten times its own step, after which it is ended and resumed. Six times"
        " as long, and without any CPU time, where no steps are taken: loading, evaluating, saving.",
    )
    check_limit_s: Seconds = Field(1_800.0, le=86_400, description="Longest check of a fine-tune's files.")
    check_memory_mb: PositiveInt = Field(16_384, ge=512, description="Address space of the process that checks files.")

    @field_validator("cores", mode="before")
    @classmethod
    def _cores_by_comma(cls, value: object) -> object:
        return split_by_comma(value)


class RetentionSettings(_Settings):
    """How long things are kept; what is over its time is deleted for good."""

    keep_inputs_days: Days = Field(
        30.0, description="Days that a job's inputs are kept after its end; a job without them cannot be retried."
    )
    keep_results_days: Days = Field(
        30.0, description="Days that a job's result is kept after its end; fine-tunes and imports keep theirs."
    )
    keep_events_days: Days = Field(30.0, description="Days that a job's events are kept after its end.")
    keep_jobs_days: Days = Field(
        90.0, description="Days that a job is kept after its end, with all that is left of it, checkpoints too."
    )
    keep_files_days: Days = Field(
        0.0, description="Days that an uploaded file is kept that names no time itself and that no open job needs."
    )
    keep_dead_letters_days: Days = Field(
        14.0, le=90, description="Days that a message is kept that nobody understands (`ondol dead-letters`)."
    )


class ReconcilerSettings(CommonSettings, WindowSettings, RetentionSettings):
    """The process that repairs: rings again what was lost, takes back what a lapsed session held."""

    tick_s: Seconds = Field(1.0, ge=0.1, le=60, description="How often the reconciler looks.")
    rung_unclaimed_s: Seconds = Field(
        4.0, ge=1, le=600, description="Age at which a job that was rung and not claimed is rung again."
    )
    leader_lease_s: Seconds = Field(
        6.0, ge=2, le=600, description="How long the one acting reconciler is believed without renewal."
    )


class IntakeSettings(CommonSettings, WindowSettings, AdmissionSettings):
    """The Celery node that records what other applications' Celery producers send."""

    producer_project: str = Field(
        "default", min_length=1, max_length=96, description="Project of the jobs that Celery producers submit."
    )
    producer_result_s: Seconds = Field(
        3_600.0, ge=1, le=2_592_000, description="How long a result is kept for a producer's AsyncResult."
    )
    producer_result_kb: PositiveInt = Field(
        1_024, le=65_536, description="Largest result a producer gets as JSON; of a larger one it gets the URL."
    )


class FlowerSettings(CommonSettings):
    """Flower, the dashboard of the Celery nodes: read-only, behind a password."""

    flower_host: str = Field("127.0.0.1", min_length=1, max_length=255, description="Address that Flower binds.")
    flower_port: int = Field(5555, ge=0, le=65_535, description="Port that Flower binds; 0 takes a free one.")
    flower_user: str = Field("ondol", pattern=r"^[!-9;-~]{1,64}$", description="Who may look at Flower.")
    flower_password: SecretStr | None = Field(
        None, description="Password for Flower; default: one that is made and kept in the data folder's run/."
    )
    flower_max_tasks: PositiveInt = Field(10_000, le=1_000_000, description="Most tasks that Flower remembers.")

    @field_validator("flower_password")
    @classmethod
    def _password_can_be_typed(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value is not None else ""
        if value is not None and not (len(text) >= 8 and text.isascii() and text.isprintable()):
            raise ValueError("a password has 8 printable ASCII characters or more")
        return value


class UpSettings(ApiSettings):
    """`ondol up`: what it passes on to the api, and what it decides itself."""

    devices: str = Field(
        "auto", max_length=200, description="Devices of this host: auto, cuda:0,cuda:1, or cpu:2x1 (two of one core)."
    )
    ready_limit_s: Seconds = Field(120.0, ge=5, le=3_600, description="Longest wait for the api to become ready.")
    stop_limit_s: Seconds = Field(
        14.0, ge=5, le=600, description="Time for all processes to stop before the rest is ended by SIGKILL."
    )
    api_key: SecretStr | None = Field(None, description="Key that `up` sends when it imports the default model.")
    train: bool = Field(True, description="Whether each device also gets a trainer node, for fine-tune jobs.")
    producers: bool = Field(
        True, description="Whether Celery producers may submit jobs; off: nobody reads their queues."
    )
    flower: bool = Field(True, description="Whether Flower is started, too.")
    import_default_model: bool = Field(
        True, description="Whether an empty model store gets the default model, if its weights package is installed."
    )


SettingsT = TypeVar("SettingsT", bound=_Settings)


def load_settings(settings_class: type[SettingsT], /, **overrides: object) -> SettingsT:
    """The settings from the environment and `.env`; `overrides` (command-line options; None = not given) win.

    A bad value ends the process with one line on stderr and exit code 2 (SystemExit).
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return settings_class(**given)  # type: ignore[arg-type]  # pydantic checks what the command line gave
    except ValidationError as exc:
        sys.stderr.write(settings_error_line(exc) + "\n")
        raise SystemExit(EXIT_WRONG_USE) from None


def settings_error_line(error: ValidationError) -> str:
    """The whole error in one line that names each variable and never repeats its value, which may be a secret."""
    parts = []
    for item in error.errors(include_url=False, include_input=False):
        message = " ".join(item["msg"].removeprefix("Value error, ").split())
        name = str(item["loc"][0]) if item["loc"] else ""
        parts.append(f"{PREFIX}{name.upper()}: {message}" if name else message)
    return "bad setting: " + "; ".join(dict.fromkeys(parts))
