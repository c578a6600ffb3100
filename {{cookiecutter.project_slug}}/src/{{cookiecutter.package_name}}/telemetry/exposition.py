"""One scrape, whichever worker answers it: the sum over all processes."""

import struct

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from . import slots

ATTEMPTS = 5  # a file may be in the making, or go, while it is read


def scrape(accept: str) -> tuple[bytes, str]:
    """All metrics in the format that the Accept header asks for, and its content type.

    It reads every process's files: call it in a thread.
    """
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # of PROMETHEUS_MULTIPROC_DIR, which slots.install() set
    for attempt in range(1, ATTEMPTS + 1):
        try:
            slots.bury()
            return encode(registry), content_type
        except (OSError, ValueError, struct.error):
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")
