"""What is measured of jobs. Import it after slots.install(), as telemetry/metrics.py."""

from prometheus_client import Counter, Gauge, Histogram

ENQUEUED = Counter("jobs_enqueued", "Jobs that Redis took.", ["task"])
REJECTED = Counter("jobs_rejected", "Jobs refused because Redis did not answer.", ["task"])

OUTCOMES = Counter("jobs_tried", "Attempts at jobs, by how they ended.", ["task", "outcome"])
SECONDS = Histogram(
    "jobs_duration_seconds",
    "Time that an attempt took.",
    ["task"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600),
)

# Every worker sees the same queue: the largest is the last word, not the sum.
DEPTH = Gauge(
    "jobs_queue_depth",
    "Jobs in Redis, by their state.",
    ["queue", "state"],
    multiprocess_mode="livemax",
)
OLDEST = Gauge(
    "jobs_oldest_seconds",
    "Age of the oldest job that is queued or running.",
    ["queue"],
    multiprocess_mode="livemax",
)
