"""`import router` as a whole process against one that imports httpx, pydantic and tenacity.

python -m benchmarks.bench_import [--rounds 15]
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.compare import interleaved, output_of, verdict

NOT_LOADED = ("duckdb", "polars", "pyarrow")


def python(source: str) -> str:
    return output_of([sys.executable, "-c", source])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    loaded = python(f"import router, sys; print([name for name in {NOT_LOADED} if name in sys.modules])")
    assert loaded == "[]\n", loaded
    timings = interleaved(
        {
            "import httpx, pydantic, tenacity": lambda: python("import httpx, pydantic, tenacity"),
            "import router": lambda: python("import router"),
        },
        rounds=rounds,
    )
    for name, timing in timings.items():
        print(f"{name:34} {timing}")
    bare_s = timings["import httpx, pydantic, tenacity"].median_s
    print(verdict("import router / its libraries", timings["import router"].median_s / bare_s, 1.4))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
