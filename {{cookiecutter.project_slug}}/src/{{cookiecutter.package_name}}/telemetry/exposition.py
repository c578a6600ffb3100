"""One scrape, whichever worker answers it: the sum over all processes."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from . import slots


def scrape(accept: str) -> tuple[bytes, str]:
    """All metrics in the format that the Accept header asks for, and its content type.

    It reads every process's files: call it in a thread.
    """
    slots.bury()
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # of PROMETHEUS_MULTIPROC_DIR, which slots.install() set
    return encode(registry), content_type
