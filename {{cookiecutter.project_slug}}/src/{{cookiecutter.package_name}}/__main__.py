"""Hands your parts to the runtime's command line."""

from .runtime import Parts, command_line

PARTS = Parts(
    __package__,
    settings="settings:Settings",
    create_app="app:create_app",
    tasks="tasks",
    preload="preload:preload",
)


def main() -> None:
    command_line(PARTS)


if __name__ == "__main__":
    main()
