"""route() against a bare httpx.Client.post of the same body to the same local server.

    python -m benchmarks.bench_route [--rounds 400]

The server is the simulator in a process of its own. With "process-crash" a request may take at most
1.4 × the bare call; with "power-loss" that, and two bare fsynced appends measured in the same run: as
route() has them, one after a call that waited for the network, and one that did not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from benchmarks.compare import interleaved, verdict
from ledger import CostTracker, Ledger
from router import LLMRouter, OpenRouterClient

KEY = "not-a-real-key"
TASK = "analyze_page"
MESSAGES = [{"role": "user", "content": "Analyze the structure of this page. " * 20}]


class Recorded(httpx.BaseTransport):
    """Passes a request on, and keeps its body: the bare call is to send the very same bytes."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner
        self.bodies: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(request.read())
        return self._inner.handle_request(request)


def body_that_route_sends(base_url: str) -> bytes:
    transport = Recorded(httpx.HTTPTransport())
    with (
        Ledger.in_memory() as ledger,
        OpenRouterClient(api_key=KEY, base_url=base_url, transport=transport) as client,
    ):
        LLMRouter(openrouter_client=client, cost_tracker=CostTracker(ledger)).route(TASK, MESSAGES)
    return transport.bodies[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    simulator = subprocess.Popen(
        [sys.executable, "-m", "router.simulator", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert simulator.stdout is not None
    try:
        base_url = json.loads(simulator.stdout.readline())["openrouter_url"]
        return compare(base_url, rounds)
    finally:
        simulator.terminate()
        simulator.wait()


def compare(base_url: str, rounds: int) -> int:
    body = body_that_route_sends(base_url)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        httpx.Client() as bare,
        OpenRouterClient(api_key=KEY, base_url=base_url) as client,
        Ledger.open(Path(folder) / "crash", "process-crash") as crash,
        Ledger.open(Path(folder) / "power", "power-loss") as power,
    ):
        routers = {
            ledger: LLMRouter(openrouter_client=client, cost_tracker=CostTracker(ledger))
            for ledger in (crash, power)
        }
        appended = os.open(Path(folder) / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def post() -> httpx.Response:
            return bare.post(f"{base_url}/chat/completions", content=body, headers=headers)

        def fsynced_append() -> None:
            os.write(appended, b"x" * 1_200)
            os.fdatasync(appended)

        answer = post()
        assert answer.status_code == 200, answer.text
        for router in routers.values():
            response = router.route(TASK, MESSAGES, session_id="bench")
            assert response["content"]
            assert response["usage"]["output_tokens"] > 0
        timings = interleaved(
            {
                "route(), power-loss": lambda: routers[power].route(TASK, MESSAGES, session_id="bench"),
                "a bare fsynced append": fsynced_append,
                "bare httpx.Client.post": post,
                "another, after the call": fsynced_append,
                "route(), process-crash": lambda: routers[crash].route(TASK, MESSAGES, session_id="bench"),
            },
            rounds=rounds,
            warm_up=30,
        )
        os.close(appended)
        for ledger in (crash, power):  # what was timed is on the books
            (count,) = (
                ledger.connect()
                .execute("select count(*) from requests where status = 'completed'")
                .fetchone()
            )  # type: ignore[misc]
            assert count == rounds + 31, count
    for name, timing in timings.items():
        print(f"{name:26} {timing}")
    bare_s = timings["bare httpx.Client.post"].median_s
    appends_s = sum(timings[name].median_s for name in ("a bare fsynced append", "another, after the call"))
    print(verdict("process-crash / bare", timings["route(), process-crash"].median_s / bare_s, 1.4))
    beyond_appends_s = timings["route(), power-loss"].median_s - appends_s
    print(verdict("(power-loss - two appends) / bare", beyond_appends_s / bare_s, 1.4))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
