"""`bughive-costs --help` as a whole process, against a typer program with one empty command.

python -m benchmarks.bench_help [--rounds 21]
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.compare import interleaved, output_of, verdict

EMPTY = """
import typer

app = typer.Typer()

@app.command()
def nothing() -> None:
    pass

app()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    ours = [sys.executable, "-m", "reports.cli", "--help"]
    of_one = [sys.executable, "-m", "reports.cli", "performance", "--help"]
    empty = [sys.executable, "-c", EMPTY, "--help"]
    assert "performance" in output_of(ours)
    assert "--compare" in output_of(of_one)
    assert "Usage" in output_of(empty)
    timings = interleaved(
        {
            "one empty command": lambda: output_of(empty),
            "bughive-costs --help": lambda: output_of(ours),
            "performance --help": lambda: output_of(of_one),
        },
        rounds=rounds,
    )
    for name, timing in timings.items():
        print(f"{name:24} {timing}")
    bare_s = timings["one empty command"].median_s
    for name in ("bughive-costs --help", "performance --help"):
        print(verdict(f"{name} / one empty command", timings[name].median_s / bare_s, 1.3))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
