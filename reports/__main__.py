"""Where `bughive-costs` begins: a Ctrl-C ends it in a line while its commands are still imported, too."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """As `reports.cli.main`, for a process that ends with it."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is to be ignored
    if is_usual:
        signal.signal(signal.SIGINT, _leave)
    from reports.cli import main as run

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    sys.stderr.write("bughive-costs: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
