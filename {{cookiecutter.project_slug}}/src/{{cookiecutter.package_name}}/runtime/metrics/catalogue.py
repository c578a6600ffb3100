"""Every metric of the service, defined once."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "http_requests", "Requests, by the status that was sent.", ["method", "route", "status"]
)
ABORTED = Counter(
    "http_responses_aborted",
    "Requests whose response was cut short, by whom: client, drain or error.",
    ["method", "route", "status", "by"],
)
REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time from the last header of a request to the end of its response.",
    ["method", "route"],
)
IN_PROGRESS = Gauge(
    "http_requests_in_progress",
    "Requests whose response is not complete.",
    multiprocess_mode="livesum",
)
CONNECTIONS_CLOSED = Counter(
    "http_connections_closed", "Connections closed for being over a bound, by which.", ["reason"]
)
LAME_DUCK = Gauge(
    "lame_duck",
    "1 while the service still serves but is about to end.",
    multiprocess_mode="livemax",
)
INFO = Gauge(
    "service_info",
    "1, labelled with what runs.",
    ["service", "version"],
    multiprocess_mode="livemax",
)

READY = Gauge(
    "ready_check",
    "1 while the check passes, 0 while it fails in any worker.",
    ["check"],
    multiprocess_mode="livemin",
)

SCHEDULED_RUNS = Counter(
    "scheduled_runs", "Runs of scheduled work, by how they ended.", ["work", "outcome"]
)
SCHEDULED_SECONDS = Histogram("scheduled_run_seconds", "Time that a run took.", ["work"])

WORKERS = Gauge(
    "workers", "Web workers wanted, and serving.", ["state"], multiprocess_mode="livesum"
)
WORKER_BOOTS = Counter("worker_boots", "Web workers that came to serve.")
WORKER_EXITS = Counter(
    "worker_exits",
    "Web workers that ended, by reason; detail is the signal or the exit code.",
    ["reason", "detail"],
)

WORKER_INFO = Gauge(
    "worker_info",
    "1, labelled with a slot and what the process in it does.",
    ["worker", "role"],
    multiprocess_mode="livemax",
)
WORKER_STATE = Gauge(
    "worker_state",
    "1 for the state that a worker is in.",
    ["worker", "state"],
    multiprocess_mode="livemax",
)
WORKER_REQUESTS = Counter(
    "worker_requests",
    "Requests that a web worker took, tasks that a compute worker did.",
    ["worker"],
)
CONNECTIONS = Gauge(
    "worker_connections", "Open connections.", ["worker"], multiprocess_mode="livemax"
)
LOOP_LAG = Gauge(
    "event_loop_lag_seconds",
    "The longest that the event loop was late within the last half a minute to minute.",
    ["worker"],
    multiprocess_mode="livemax",
)
LOOP_SEEN = Gauge(
    "event_loop_last_turn_timestamp_seconds",
    "When the event loop last came round, as Unix time: long ago while it is blocked.",
    ["worker"],
    multiprocess_mode="livemax",
)
LOOP_BUSY = Counter(
    "event_loop_busy_seconds", "Time that the event loop was at work or blocked.", ["worker"]
)
GC_RUNS = Counter(
    "worker_gc_collections", "Runs of the garbage collector.", ["worker", "generation"]
)

BROADCAST_PUBLISHED = Counter("broadcast_published", "Messages published.")
BROADCAST_DELIVERED = Counter("broadcast_delivered", "Messages given to subscribers.")
BROADCAST_DROPPED = Counter(
    "broadcast_dropped",
    "Messages lost at a slow subscriber, or on the way to a worker or to other pods.",
    ["at"],
)

COMPUTE_TASKS = Counter("compute_tasks", "Tasks run, by how they ended.", ["task", "outcome"])
COMPUTE_TASK_SECONDS = Histogram(
    "compute_task_seconds", "Time that a compute worker spent on a task.", ["task"]
)
COMPUTE_QUEUE_SECONDS = Histogram(
    "compute_queue_seconds", "Time that a task waited for a free compute worker."
)
COMPUTE_REJECTED = Counter("compute_rejected", "Tasks refused because the queue was full.")
COMPUTE_WORKERS = Gauge(
    "compute_workers",
    "Compute workers wanted, and serving.",
    ["state"],
    multiprocess_mode="livesum",
)
COMPUTE_WORKER_EXITS = Counter(
    "compute_worker_exits",
    "Compute workers that ended, by reason; detail is the signal or the exit code.",
    ["reason", "detail"],
)

LOG_LINES_DROPPED = Counter(
    "log_lines_dropped", "Log lines for which standard output or standard error had no room."
)
