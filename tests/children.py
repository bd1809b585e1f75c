"""Processes that tests start."""

import signal


def interruptible():
    """Let SIGINT end a child, as `preexec_fn`; one of a script's background jobs inherits that it does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
