"""One class a kind of process, built in its composition root over a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ondol.metrics.batch_histogram import BatchHistogram
from ondol.metrics.batches import BatchMetrics, number_in
from ondol.metrics.clock import ClockMetric
from ondol.metrics.dead_letters import DeadLetterMetrics
from ondol.metrics.jobs import AcceptMetrics, AttemptMetrics, EndedAttempts, NoticeMetrics, RingMetrics, StageMetrics
from ondol.metrics.purging import PurgeMetrics, SweepMetrics
from ondol.metrics.registry import as_label, new_registry

REQUEST_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
MAX_MODELS_NAMED = 64
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class ApiMetrics:
    """What the api counts."""

    def __init__(self) -> None:
        self.registry = new_registry("api")
        self.clock = ClockMetric(self.registry)
        self.accept = AcceptMetrics(self.registry)
        self.ring = RingMetrics(self.registry)
        self.notices = NoticeMetrics(self.registry, "webhook")
        self.sweeps = SweepMetrics(self.registry)
        self._requests = Counter(
            "ondol_http_requests_total",
            "HTTP requests answered; route is the template, `unmatched` where there is none.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._request_s = BatchHistogram(
            "ondol_http_request_seconds",
            "Seconds from a request's head to the end of its answer; long polls and event streams wait on purpose.",
            ("route",),
            bounds=REQUEST_BOUNDS_S,
            registry=self.registry,
        )
        self._streams = Gauge(
            "ondol_event_streams",
            "Event streams (SSE) that are open; at ONDOL_MAX_EVENT_STREAMS the next is refused.",
            registry=self.registry,
        )
        self._body_bytes = Gauge(
            "ondol_request_body_bytes",
            "Bytes of JSON bodies that are held; at ONDOL_MAX_BODIES_MB the next is refused.",
            registry=self.registry,
        )
        self._calls = Counter(
            "ondol_calls_total",
            "Synchronous calls ended: ok, left (the client hung up), or the error's code.",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self._call_tokens = Counter(
            "ondol_call_tokens_total", "Tokens of the calls that were answered.", ("kind",), registry=self.registry
        )
        self._call_s = BatchHistogram(
            "ondol_call_seconds",
            "Seconds from sending a call to a worker to its answer, however it ended.",
            ("kind",),
            bounds=REQUEST_BOUNDS_S,
            registry=self.registry,
        )

    def watch(self, *, num_streams: Callable[[], int], num_body_bytes: Callable[[], int]) -> None:
        """Where to look for what requests hold; each is called on the thread that answers a scrape."""
        self._streams.set_function(num_streams)
        self._body_bytes.set_function(num_body_bytes)

    def request_ended(self, *, route: str | None, method: str, status: int, took_s: float) -> None:
        """A request was answered."""
        template = route or "unmatched"
        self._requests.labels(template, method if method in _METHODS else "other", status).inc()
        self._request_s.observe((took_s,), template)

    def call_ended(self, kind: str, outcome: str, *, took_s: float, num_tokens: int = 0) -> None:
        """A call has ended."""
        self._calls.labels(kind, as_label(outcome)).inc()
        self._call_s.observe((took_s,), kind)
        if num_tokens:
            self._call_tokens.labels(kind).inc(num_tokens)


class IntakeMetrics:
    """What the intake of Celery producers counts."""

    def __init__(self) -> None:
        self.registry = new_registry("intake")
        self.clock = ClockMetric(self.registry)
        self.accept = AcceptMetrics(self.registry)
        self.ring = RingMetrics(self.registry)
        self.notices = NoticeMetrics(self.registry, "celery")
        self.letters = DeadLetterMetrics(self.registry)


class DeviceMetrics:
    """The device of a worker and what is warm on it; what is a state is asked for when somebody looks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.restarts = Counter(
            "ondol_device_restarts_total",
            "Device processes that ended without being asked to, and were replaced.",
            registry=registry,
        )
        self._up = Gauge("ondol_device_up", "1 while a device process answers, else 0.", registry=registry)
        self._waiting = Gauge(
            "ondol_batcher_waiting_tokens", "Tokens of the rows that wait for the device.", registry=registry
        )
        self._used = Gauge(
            "ondol_device_memory_used_bytes", "Memory that the warm models take, as measured.", registry=registry
        )
        self._limit = Gauge("ondol_device_memory_limit_bytes", "Memory that warm models may take.", registry=registry)
        self._warm = Gauge("ondol_warm_models", "Models that are warm on the device.", registry=registry)
        self._models = _WarmModels(registry)

    def watch(
        self,
        *,
        is_up: Callable[[], bool],
        num_waiting_tokens: Callable[[], int],
        used_bytes: Callable[[], int],
        warm: Callable[[], Collection[str]],
    ) -> None:
        """Where to look; each is called on the thread that answers a scrape."""
        self._up.set_function(is_up)
        self._waiting.set_function(num_waiting_tokens)
        self._warm.set_function(lambda: len(warm()))
        self._used.set_function(used_bytes)
        self._models.warm = warm

    def device_up(self, ready: Mapping[str, object]) -> None:
        """A device process has come up with this `ready` header."""
        self._limit.set(number_in(ready, "memory_bytes"))


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self.registry = new_registry("worker")
        self.clock = ClockMetric(self.registry)
        self.ring = RingMetrics(self.registry)
        self.attempts = AttemptMetrics(self.registry)
        self.stages = StageMetrics(self.registry)
        self.batches = BatchMetrics(self.registry)
        self.device = DeviceMetrics(self.registry)
        self.letters = DeadLetterMetrics(self.registry)


class TrainerMetrics:
    """What a trainer node counts."""

    def __init__(self) -> None:
        self.registry = new_registry("trainer")
        self.clock = ClockMetric(self.registry)
        self.ring = RingMetrics(self.registry)
        self.attempts = AttemptMetrics(self.registry, ("fine-tune", "lost"))
        self.stages = StageMetrics(self.registry)
        self.letters = DeadLetterMetrics(self.registry)
        self._checks = Counter(
            "ondol_checks_total",
            "Checks of a fine-tune's files ended: passed, failed (also where a retry is left), handed_back, stale.",
            ("outcome",),
            registry=self.registry,
        )
        self.running = Gauge("ondol_training_running", "Trainings that run on this node now.", registry=self.registry)
        self._steps = Counter(
            "ondol_training_steps_total",
            "Training steps done; its rate is the speed in steps a second.",
            registry=self.registry,
        )
        self._checkpoints = Counter(
            "ondol_checkpoints_committed_total",
            "Checkpoints that are whole in the model store.",
            registry=self.registry,
        )
        self._checkpoint_bytes = Counter(
            "ondol_checkpoint_bytes_total", "Size of the committed checkpoints.", registry=self.registry
        )

    def check_ended(self, outcome: str) -> None:
        """A check has ended."""
        self._checks.labels(outcome).inc()

    def steps_done(self, num: int) -> None:
        """A training is so many steps further."""
        self._steps.inc(num)

    def checkpoint_committed(self, size_bytes: int) -> None:
        """A checkpoint is whole in the store."""
        self._checkpoints.inc()
        self._checkpoint_bytes.inc(size_bytes)


class ReconcilerMetrics:
    """What a reconciler counts; the state of the whole system is `SystemMetrics`. `kinds`: of jobs that may be lost."""

    def __init__(self, kinds: Iterable[str] = ()) -> None:
        self.registry = new_registry("reconciler")
        self.clock = ClockMetric(self.registry)
        self.ring = RingMetrics(self.registry)
        self.attempts = EndedAttempts(self.registry, *((kind, "lost") for kind in kinds))
        self.purges = PurgeMetrics(self.registry)
        self.leads = Gauge(
            "ondol_reconciler_leads", "1 while this reconciler is the one that acts, else 0.", registry=self.registry
        )
        self.letters = Gauge(
            "ondol_dead_letters",
            "Dead letters that wait to be looked at, as the acting reconciler has found; 0 at the others.",
            registry=self.registry,
        )
        self.rounds = Counter(
            "ondol_reconciler_rounds_total",
            "Rounds of repairs done; standing still means that nothing is repaired.",
            registry=self.registry,
        )


class _WarmModels(Collector):
    """`ondol_warm_model_info`, one series a model that is warm now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.warm: Callable[[], Collection[str]] = tuple
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for ref in sorted(self.warm())[:MAX_MODELS_NAMED]:
            family.add_metric((ref,), 1)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        documentation = f"Always 1; a version that is warm on the device, {MAX_MODELS_NAMED} at most."
        return GaugeMetricFamily("ondol_warm_model_info", documentation, labels=("version",))
