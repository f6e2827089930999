"""Runs the simulator as a process: one line of JSON with its urls, then it serves until told to stop.

It stops on SIGTERM, SIGINT, or when its standard input ends, so that it never outlives its parent.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading

from router.simulator import Simulator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m router.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_set_at_end_of_input, args=(stop,), daemon=True).start()
    sim = Simulator(seed=arguments.seed, port=arguments.port, log_limit=1000)
    try:
        sim.start()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        parser.exit(
            2, f"port {arguments.port} cannot be used: {why}; name another, or 0 for any that is free\n"
        )
    try:
        urls = {"anthropic_url": sim.anthropic_url, "openrouter_url": sim.openrouter_url}
        sys.stdout.write(json.dumps(urls) + "\n")
        sys.stdout.flush()
        stop.wait()
    finally:
        sim.stop()


def _set_at_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
