"""What the measured curves say: how many workers, on which loop, and what to write into k8s/."""

import math
from dataclasses import dataclass

LITTLE = 0.05  # of throughput: less is no reason for another worker, nor for another loop
AT_ITS_LIMIT = 0.85  # of a CPU: a generator above that no longer asks as fast as it could
FULL = 0.95  # of the machine's CPUs
SATURATED = 0.9  # of a CPU: a worker above that has no time left
ERRORS = 0.01
HPA_TARGET = 70  # per cent
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]


@dataclass(frozen=True)
class Point:
    """Medians of the runs with one number of workers on one loop."""

    loop: str
    workers: int
    throughput: float  # requests a second
    least: float  # of the runs
    most: float
    p50: float  # seconds
    p99: float
    web_cpu: float  # CPUs that the web workers and the management process used
    compute_cpu: float
    memory: float  # bytes, of all processes
    lag: float  # seconds that an event loop was late
    fairness: float  # requests of the busiest worker over those of an even share
    errors: float  # share of the requests
    generator: float  # CPUs that the busiest generator used, at most one
    machine: float  # share of the machine's CPUs in use, by whomever

    @property
    def cpu(self) -> float:
        return self.web_cpu + self.compute_cpu

    @property
    def cost(self) -> float:
        """Seconds of CPU for a request."""
        return self.cpu / self.throughput if self.throughput else 0.0


@dataclass(frozen=True)
class Advice:
    title: str
    reason: str
    point: Point | None
    lines: dict[str, str]  # by file, what to write there


def ordinal(number: int) -> str:
    return ORDINALS[number - 1] if number <= len(ORDINALS) else f"{number}th"


def change(before: float, after: float) -> str:
    """In words: `adds 2 %`, `takes 3 %`."""
    share = (after / before - 1) * 100 if before else 0.0
    return f"{'adds' if share >= 0 else 'takes'} {abs(share):.0f} %"


def doubt(point: Point, cpus: float) -> str:
    """Why a point says nothing about a service that was given so many CPUs; empty: it does."""
    if not point.throughput:
        return "nothing was answered"
    if point.errors > ERRORS:
        return f"{point.errors:.0%} of the answers were not those expected"
    if point.generator >= AT_ITS_LIMIT:
        return f"the load generator was at its limit ({point.generator:.0%} of a CPU)"
    could_use_more = point.cpu < SATURATED * cpus and point.web_cpu < SATURATED * point.workers
    if point.machine >= FULL and could_use_more:
        return "the machine had no CPU left beside the load generator and what else runs here"
    return ""


def advise(points: list[Point], cpus: float) -> Advice:
    """The fewest workers whose throughput is within 5 % of the best that was measured."""
    sound = [point for point in points if not doubt(point, cpus)]
    if not sound:
        why = sorted({doubt(point, cpus) for point in points}) or ["nothing was measured"]
        return Advice(
            "No recommendation",
            f"Nothing here tells how fast the service is: {'; '.join(why)}. {REMEDY}",
            None,
            {},
        )
    knees = [knee([p for p in sound if p.loop == loop]) for loop in {p.loop for p in sound}]
    best = max(point.throughput for point in knees)
    fast = [point for point in knees if point.throughput >= best * (1 - LITTLE)]
    chosen = min(fast, key=lambda point: (point.workers, point.loop != "uvloop"))
    title = f"{chosen.workers} worker{'s' * (chosen.workers > 1)} on {chosen.loop}"
    at_least, why_these = why_no_more(chosen, points, cpus)
    others = [point for point in knees if point.loop != chosen.loop]
    reasons = [why_these, *(against(chosen, other) for other in others)]
    if chosen.web_cpu < chosen.workers * 0.5 and chosen.cpu < SATURATED * cpus:
        reasons.append(
            f"Its workers were busy for {chosen.web_cpu / chosen.workers:.0%} of the time only:"
            " something else bounds the service, a pool of connections, a database or compute."
        )
    return Advice(
        f"At least {title}" if at_least else title, " ".join(reasons), chosen, lines(chosen)
    )


REMEDY = "Give it fewer CPUs than this machine has (make tune CPUS=1), or take a larger machine."


def knee(points: list[Point]) -> Point:
    best = max(point.throughput for point in points)
    enough = [point for point in points if point.throughput >= best * (1 - LITTLE)]
    return min(enough, key=lambda point: point.workers)


def why_no_more(chosen: Point, points: list[Point], cpus: float) -> tuple[bool, str]:
    """Whether more workers might be better, and why these are recommended."""
    more = [p for p in points if p.loop == chosen.loop and p.workers > chosen.workers]
    if not more:
        return chosen.workers > 1, f"More than {chosen.workers} were not tried."
    after = min(more, key=lambda point: point.workers)
    if why := doubt(after, cpus):
        return True, f"Nothing is claimed about {after.workers}: {why}. {REMEDY}"
    which = f"The {ordinal(after.workers)}"
    if after.workers - chosen.workers > 1:
        which = f"Going to {after.workers}"
    throughput = change(chosen.throughput, after.throughput)
    p99 = change(chosen.p99, after.p99)
    if throughput.split()[0] == p99.split()[0]:
        p99 = p99.partition(" ")[2]
    return False, f"{which} {throughput} of throughput and {p99} of p99."


def against(chosen: Point, other: Point) -> str:
    share = other.throughput / chosen.throughput - 1
    if abs(share) < LITTLE:
        return f"{other.loop} is as fast, within {LITTLE:.0%}."
    much = "more" if share > 0 else "less"
    return (
        f"{other.loop} serves {abs(share):.0%} {much}, with {other.workers}"
        f" worker{'s' * (other.workers > 1)}."
    )


def millicores(cpus: float) -> int:
    return max(50, math.ceil(cpus * 20) * 50)


def lines(point: Point) -> dict[str, str]:
    """A limit of so many CPUs makes so many workers; the request is what they use at their peak."""
    mebibytes = math.ceil(max(point.memory / 2**20, 96 * point.workers) / 0.8 / 16) * 16
    found = {
        "k8s/deployment.yaml, container web": (
            "resources:\n"
            "  requests:\n"
            f"    cpu: {min(millicores(point.web_cpu), 1000 * point.workers)}m\n"
            f"    memory: {mebibytes}Mi\n"
            "  limits:\n"
            f'    cpu: "{point.workers}"\n'
            f"    memory: {mebibytes}Mi"
        ),
        "k8s/hpa.yaml": f"averageUtilization: {HPA_TARGET}",
        "k8s/configmap.yaml, or the environment elsewhere": f"EVENT_LOOP: {point.loop}",
        "the environment, where no CPU limit says it": f"WEB_CONCURRENCY={point.workers}",
    }
    if point.compute_cpu >= 0.05:
        found["k8s/deployment.yaml, container compute"] = (
            f"resources:\n  requests:\n    cpu: {millicores(point.compute_cpu)}m"
        )
    return found
