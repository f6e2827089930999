"""Sealing beside the program, in a short process of its own: when it is due, and how it is started.

pyarrow has no place in an agent, nor has a sealer's output.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

SEAL_AT_JOURNALS = 2_000
SEAL_AT_BYTES = 32_000_000  # about 50,000 events


class AutoSealer:
    """The sealer of a ledger's folder, as far as this process starts it; one at a time."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path = path
        self._enabled = enabled
        self.process: subprocess.Popen[bytes] | None = None  # the last one that was started

    def start_if_due(self, today: date) -> None:
        """Start it where an earlier day's journals, very many, or very long ones lie about."""
        midnight = datetime(today.year, today.month, today.day, tzinfo=UTC).timestamp()
        found = [
            status
            for entry in os.scandir(self._path / "journals")
            if entry.name.endswith(".jsonl") and entry.name != "empty.jsonl" and (status := _status(entry))
        ]
        if (
            len(found) >= SEAL_AT_JOURNALS
            or sum(status.st_size for status in found) >= SEAL_AT_BYTES
            or any(status.st_mtime < midnight for status in found)
        ):
            self.start()

    def start(self) -> None:
        """Start it, unless it is at work or not wanted; what cannot be started is left to the next time."""
        if not self._enabled or (self.process is not None and self.process.poll() is None):
            return
        source = str(Path(__file__).resolve().parents[1])
        search_path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        with contextlib.suppress(OSError):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ledger.sealing", str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": search_path},
                start_new_session=True,
            )


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """A file's status; None where a sealer removed it meanwhile."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
