"""What holds for all tests, and what many of them begin with."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from router.simulator import Simulator

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # how long a case takes says nothing here
settings.load_profile("any machine")

DISK, MEMORY = os.environ.setdefault("TESTS_ON_DISK", tempfile.gettempdir()), "/dev/shm"
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**32:
    # What a disk keeps, forgets or refuses is made up (forgetful.py) or mounted: no test need wait for a real
    # one, which took an eighth of all time. Processes that tests start inherit it.
    os.environ["TMPDIR"] = tempfile.tempdir = MEMORY

gc.set_threshold(100_000)  # the heap of a run is large: to look through it often takes a tenth of all time


@pytest.fixture
def sim() -> Iterator[Simulator]:
    """A provider on the loopback, the same in each run."""
    from router.simulator import Simulator

    with Simulator(seed=7) as simulator:
        yield simulator


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder on the disk: what is written there as fast as can be is no more than can be looked at."""
    with tempfile.TemporaryDirectory(dir=DISK) as folder:
        yield Path(folder)


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and no key, address, proxy or certificate in the environment."""
    for name in list(os.environ):
        if name == "SSL_CERT_FILE" or name.lower().endswith(("_proxy", "_api_key", "_base_url")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
