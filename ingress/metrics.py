"""What the ingress counts. Labels are few and never name a session."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_GAPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 10)


class Metrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "okome_ingress_requests_total", "Requests answered", ["kind", "status"], registry=registry
        )
        self.connections = Gauge("okome_ingress_connections", "Open client connections", registry=registry)
        self.bodies = Gauge("okome_ingress_body_bytes", "Bytes of clients' bodies that are held", registry=registry)
        self.refused = Counter(
            "okome_ingress_refused_total", "Requests that the ingress itself refused", ["code"], registry=registry
        )
        self.streams = Gauge("okome_ingress_streams_active", "Open streams", ["transport"], registry=registry)
        self.stream_ends = Counter(
            "okome_ingress_stream_ends_total", "Streams that ended", ["transport", "reason"], registry=registry
        )
        self.legs = Counter("okome_ingress_legs_total", "Legs opened to nodes", ["transport"], registry=registry)
        self.shared = Gauge(
            "okome_ingress_node_connections_shared",
            "Connections to nodes that carry many streams each",
            registry=registry,
        )
        self.splices = Counter(
            "okome_ingress_splices_total",
            "Streams continued on another leg",
            ["transport", "reason"],
            registry=registry,
        )
        self.gap = Histogram(
            "okome_ingress_gap_seconds",
            "From the loss of a leg to the moment another node has joined",
            ["reason"],
            buckets=_GAPS,
            registry=registry,
        )
        self.relayed = Counter(
            "okome_ingress_relayed_bytes_total", "Bytes of streams relayed to clients", registry=registry
        )
        self.repeats = Counter(
            "okome_ingress_repeats_total", "Ordinary requests sent to another node", registry=registry
        )
        self.limited = Counter(
            "okome_ingress_rate_limited_total", "Requests answered 429 or its like", ["limit"], registry=registry
        )
        self.limiter_shared = Gauge(
            "okome_ingress_limiter_shared", "1: limits are counted in Redis, 0: in this process", registry=registry
        )
        self.nodes = Gauge("okome_ingress_nodes", "Known nodes", ["state"], registry=registry)
        self.workers = Gauge("okome_ingress_workers", "Workers heard within 1 s", registry=registry)
        self.control = Gauge("okome_ingress_control_up", "1: OKOME answers", registry=registry)
        self.peers = Gauge("okome_ingress_live", "Ingress processes, this one included", registry=registry)
        self.loop_lag = Histogram(
            "okome_ingress_loop_lag_seconds",
            "How late the event loop was",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
            registry=registry,
        )
