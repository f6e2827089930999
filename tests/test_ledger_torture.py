"""A short form of `make torture`: what is killed at random moments loses, doubles and changes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINUTES = 0.3  # then the round that is being played is ended


@pytest.mark.skipif(sys.platform != "linux", reason="it finds its processes in /proc")
def test_nothing_is_lost_doubled_or_changed_by_kills_at_random_moments(on_disk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/torture.py", "--minutes", str(MINUTES), "--folder", str(on_disk)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* kills .* nothing was lost, doubled or changed$", done.stdout, re.MULTILINE)
    assert list(on_disk.iterdir()) == [], "a round without a finding leaves nothing behind"
