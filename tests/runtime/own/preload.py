"""Nothing is preloaded, unless a test puts another file in the place of this one."""


def preload() -> None:
    return None
