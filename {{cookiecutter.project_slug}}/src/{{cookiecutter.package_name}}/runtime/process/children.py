"""What a worker's children get of it: nothing that a stranger's children would not have."""

import os
import signal
from collections.abc import Callable, Iterable

PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}  # ignored in every Python process


def stay_deaf(*numbers: signal.Signals) -> None:
    """Do nothing on these signals. SIG_IGN would be handed on to every program that is started."""
    for number in numbers:
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)


def separate(sockets: Callable[[], Iterable[int]]) -> None:
    """From now on, forks of this process have default signal handling, and none of `sockets`.

    A fork shares the descriptor that a signal wakes the loop by, so that its SIGTERM would be ours
    too; and what it holds of a port or of a connection stays open when we are gone.

    Args:
        sockets: descriptors, asked for at each fork.
    """
    separated = False

    def leave_behind() -> None:
        nonlocal separated
        if separated:  # a grandchild: by now these numbers may be files of its own
            return
        separated = True
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - PYTHONS_OWN:
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in sockets():  # not closed: their objects would close the next files of this number
            os.dup2(null, fd, inheritable=False)
        os.close(null)

    os.register_at_fork(after_in_child=leave_behind)
