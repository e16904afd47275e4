"""What a worker counts. Children are made once per model: counting a token is one addition. Never a session id."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from broker.bus.tally import Counts, Spreads

_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

TOKENS = Counts("okome_worker_tokens_total", "Tokens that engines gave", ["model"])
FIRST_TOKEN = Histogram(
    "okome_worker_first_token_seconds", "From the delivery of a job to its first token", ["model"], buckets=_SLOW
)
BETWEEN = Spreads(
    "okome_worker_between_tokens_seconds", "Between two pieces of one engine's answer", ["model"], buckets=_FAST
)
PUBLISH = Spreads("okome_worker_publish_ack_seconds", "From a fenced publish to its acknowledgement", buckets=_FAST)
WAITING = Gauge("okome_worker_publishes_waiting", "Answers whose next frame waits until its log has taken others")
INTERVAL = Gauge("okome_worker_frame_interval_seconds", "How long tokens of an answer collect now, about")
BATCHED = Counter("okome_worker_batched_frames_total", "Frames that were published in a batch with others'")
FAILED_BATCHES = Counter("okome_worker_failed_batches_total", "Batches that were refused, or not acknowledged")
RETRIES = Counter(
    "okome_worker_publish_retries_total",
    "Publishes tried again: nothing was said of the first, or no room",
)
ENDED = Counter("okome_worker_generations_total", "Generations that this worker let go, by how", ["model", "how"])
RUNNING = Gauge("okome_worker_running", "Generations that run", ["model"])
HELD = Gauge("okome_worker_held", "Generations that are held: running, or about to", ["model"])
FENCED = Counter("okome_worker_fenced_total", "Attempts that found another writer behind their fence")
TAKEOVERS = Counter("okome_worker_takeovers_total", "Generations taken over from another attempt", ["model"])
CANCELS = Counter("okome_worker_cancels_total", "Generations cancelled, by what asked for it", ["by"])
PAUSED = Counter("okome_worker_pauses_total", "Times that an engine was paused because all viewers lagged")
RESUMED = Counter("okome_worker_resumes_total", "Pauses of an engine that are over, by what ended them", ["by"])
NAKS = Counter("okome_worker_dead_worker_naks_total", "Jobs of silent workers that this one gave back to the queue")
ADOPTED = Counter("okome_worker_adopted_total", "Deliveries of a job that was already held here")


class Measured:
    """The counters of one model."""

    __slots__ = ("model", "_between", "_first", "acknowledged", "_tokens", "held", "running", "takeovers")

    def __init__(self, model: str) -> None:
        self.model = model
        self._tokens = TOKENS.labels(model).inc
        self._first = FIRST_TOKEN.labels(model).observe
        self._between = BETWEEN.labels(model).observe
        self.acknowledged = PUBLISH.labels().observe
        """Told how many seconds a publish was under way."""
        self.running = RUNNING.labels(model)
        self.held = HELD.labels(model)
        self.takeovers = TAKEOVERS.labels(model)

    def first(self, seconds: float) -> None:
        self._first(seconds)

    def decoded(self, n: int, seconds: float) -> None:
        """`n` tokens, `seconds` after the piece before."""
        self._tokens(n)
        self._between(seconds)

    def ended(self, how: str) -> None:
        ENDED.labels(self.model, how).inc()
