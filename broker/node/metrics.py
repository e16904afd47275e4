"""What a node counts. Base units; children are made once, never with a session in a label."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from broker.bus.tally import Counts

LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

subscribers = Gauge("okome_node_subscribers", "Open client connections", ["transport"])
events_sent = Counts("okome_node_events_sent_total", "Events written to client connections", ["transport"])
attaches = Counter("okome_node_attaches_total", "Streams opened", ["transport", "start"])
ends = Counter("okome_node_stream_ends_total", "Streams closed", ["transport", "reason"])
resets = Counter("okome_node_resets_total", "Cursors that could not be honoured", ["reason"])
pages = Counter("okome_node_log_pages_total", "Pages read from the log for readers behind their ring")
holes = Counter("okome_node_holes_total", "Holes in a tail, filled from the log")
tail_moves = Counter(
    "okome_node_tail_moves_total", "Times a tail was not to be trusted and another NATS server was taken"
)
tails = Gauge("okome_node_tails", "Partitions followed")
auth_failures = Counter("okome_node_auth_failures_total", "Requests refused by their credentials", ["code"])
cache_requests = Counter("okome_node_cache_requests_total", "Questions to the hot cache", ["cache", "outcome"])
loop_lag = Histogram("okome_node_event_loop_lag_seconds", "Delay of a timer that was due", buckets=LATENCY)
requests = Histogram("okome_node_request_seconds", "API requests", ["status"], buckets=(*LATENCY, 5, 10))
