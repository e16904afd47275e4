"""What OKOME counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

operations = Histogram(
    "okome_control_operation_seconds",
    "Time from a question to its answer",
    ["operation", "outcome"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
naks = Counter("okome_control_naks_total", "Deliveries given back for dead workers")
sweeps = Counter("okome_control_sweeps_total", "What the sweeper had to do", ["action"])
open_generations = Gauge("okome_control_open_generations", "Generations accepted and not ended")
waiting_jobs = Gauge("okome_control_waiting_jobs", "Jobs beyond the slots that workers offer", ["model"])
active = Gauge("okome_control_active", "1 while this replica sweeps")
