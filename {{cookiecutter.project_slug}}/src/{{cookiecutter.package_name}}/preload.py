"""Yours: what all processes share one copy of, such as a model or a table."""


def preload() -> object:
    """Load it. Called once, in the management process, before any worker is forked.

    Handlers find what it returns as `app[PRELOADED]`, tasks as `preloaded()`. What it starts does
    not reach the workers: no threads, no sockets. docs/memory.md says what stays shared.
    """
    return None
