"""Who can look into a ledger, what it refuses to be made of, and where it refuses to be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import answered_request

from ledger import files, layout
from ledger.errors import LedgerError
from ledger.files import mount_type
from ledger.ledger import Ledger
from ledger.reader import connect
from reports.cli import main

UMASKS = (0o000, 0o022, 0o077, 0o177, 0o277, 0o777)
_IS_ROOT = os.geteuid() == 0
_NOBODY = 65534

# A program without root's rights: root may do everything, whatever the modes say. All modules are
# loaded before it gives them up; afterwards it may not be able to read them.
_WITHOUT_RIGHTS = """
import json, os, shutil, stat, sys
from pathlib import Path
from ledger.backup import backup
from events_by_hand import answered_request
from ledger.errors import LedgerError
from ledger.ledger import Ledger

def use(ledger):
    answered_request(ledger, "r-1")
    ledger.seal()
    answered_request(ledger, "r-2")
    with ledger.connect() as connection:
        return connection.execute("select count(*) from requests").fetchone()[0]

def modes(folder):
    return {
        str(found.relative_to(folder)): stat.S_IMODE(found.lstat().st_mode)
        for found in folder.rglob("*")
    }

place = Path(sys.argv[1])
with Ledger.in_memory() as ledger:
    use(ledger)
    backup(ledger.path, place / "loaded")
shutil.rmtree(place / "loaded")
if os.geteuid() == 0:
    os.chown(place, NOBODY, NOBODY)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def without_rights(program: str, *arguments: object) -> Any:
    """What a program prints as JSON that is not root; `place` is a folder of its own."""
    place = Path(tempfile.mkdtemp(prefix="bughive-test-"))
    try:
        told = subprocess.run(
            [sys.executable, "-c", _WITHOUT_RIGHTS.replace("NOBODY", str(_NOBODY)) + program, place]
            + [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        shutil.rmtree(place)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


# modes


@pytest.fixture(scope="module")
def modes_by_umask() -> dict[str, Any]:
    """Per umask: the requests that were read back, and all modes in an open and in a closed ledger."""
    found: dict[str, Any] = without_rights(
        """
found = {}
for umask in map(int, sys.argv[2:]):
    os.umask(umask)
    above = place / f"{umask:04o}"
    with Ledger.open(above / "data" / "ledger") as ledger:
        requests = use(ledger)
        opened = modes(place)
        backup(ledger.path, above / "kept" / "backup")
    with Ledger.open(above / "data" / "ledger") as ledger:
        again = use(ledger)
    found[umask] = [requests, again, opened, modes(place)]
    os.umask(0o022)
print(json.dumps(found))
""",
        *UMASKS,
    )
    return found


@pytest.mark.parametrize("umask", UMASKS, ids=lambda umask: f"{umask:04o}")
def test_files_are_0600_and_folders_0700_under_any_umask(umask: int, modes_by_umask: dict[str, Any]) -> None:
    *requests, opened, closed = modes_by_umask[str(umask)]

    assert requests == [2, 2], "a ledger that its own mode keeps its owner from is no ledger"
    for modes in (opened, closed):
        ours = {name: mode for name, mode in modes.items() if name.startswith(f"{umask:04o}")}
        folders = {name for name in ours if any(other.startswith(f"{name}/") for other in ours)}
        assert {name: f"{mode:04o}" for name, mode in ours.items()} == {
            name: "0700" if name in folders else "0600" for name in ours
        }


def test_all_kinds_of_files_were_looked_at(modes_by_umask: dict[str, Any]) -> None:
    kinds = {Path(name).suffix for name in modes_by_umask["0"][2]}
    names = {Path(name).name for name in modes_by_umask["0"][2]}

    assert {".jsonl", ".parquet", ".sql", ".lock", ".db", ".id"} <= kinds
    assert {"manifest.jsonl", "state.db-wal", "state.db-shm", "0000", "data", "ledger"} <= names


@pytest.fixture
def outlives_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies: of what does not there is another warning."""
    monkeypatch.setattr("ledger.files._LOST_AT_REBOOT", ())


@pytest.mark.usefixtures("outlives_a_reboot")
def test_folders_that_were_there_keep_their_modes_and_a_wide_one_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    above, path = tmp_path / "above", tmp_path / "above" / "ledger"
    for folder in (above, path):
        folder.mkdir()
        folder.chmod(0o755)

    for _ in range(2):
        Ledger.open(path).close()

    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (above, path)] == [0o755, 0o755]
    assert [record.getMessage() for record in caplog.records] == [
        f"others may look into the ledger {path} (mode 0755); chmod 700 keeps it private"
    ]


@pytest.mark.usefixtures("outlives_a_reboot")
def test_a_folder_that_a_ledger_makes_is_not_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Ledger.open(path).close()
    assert not caplog.records


# symlinks


def _sealed_and_more(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        answered_request(ledger, "r-2")


_LINKED = (
    *("journals/*-*.jsonl", "manifest.jsonl", "state.db", "seal.lock", "ledger.id", "ledger.sql"),
    *("journals/empty.jsonl", "journals", "events", "events/date=2*", "events/date=2*/*.parquet"),
)


@pytest.mark.parametrize("name", _LINKED)
@pytest.mark.parametrize("use", ["write", "read"])
def test_a_symlink_in_a_ledger_is_refused_in_one_line(name: str, use: str, path: Path) -> None:
    _sealed_and_more(path)
    (found,) = path.glob(name.replace("*-*", "[0-9a-f]*[0-9a-f]"))
    elsewhere = path.with_name("elsewhere")
    found.rename(elsewhere)
    found.symlink_to(elsewhere)
    before = _contents(elsewhere)

    with pytest.raises(LedgerError) as refused:
        if use == "read":
            connect(path).close()
        else:
            with Ledger.open(path, auto_seal=False) as ledger:
                ledger.seal()
                ledger.connect().close()

    assert str(found) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert _contents(elsewhere) == before
    assert found.is_symlink()


def test_a_symlink_that_names_nothing_is_refused_and_nothing_is_made_through_it(path: Path) -> None:
    _sealed_and_more(path)
    (path / "seal.lock").unlink()
    (path / "seal.lock").symlink_to(path.with_name("elsewhere"))

    with pytest.raises(LedgerError, match=r"seal\.lock is a symlink"):
        Ledger.open(path)
    with pytest.raises(LedgerError, match=r"seal\.lock is a symlink"):
        files.open_private(path / "seal.lock", os.O_RDWR | os.O_CREAT)

    assert not path.with_name("elsewhere").exists()


def test_a_symlink_that_comes_while_the_ledger_is_open_is_refused_too(path: Path) -> None:
    with Ledger.open(path, auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        path.with_name("elsewhere").mkdir()
        day = ledger.now().date()
        (path / "events" / f"date={day}").symlink_to(path.with_name("elsewhere"))
        with pytest.raises(LedgerError, match=f"date={day} is a symlink"):
            ledger.seal()

    assert not list(path.with_name("elsewhere").iterdir())


def test_a_symlink_above_the_ledger_is_the_users_own_affair(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    with Ledger.open(tmp_path / "data" / "ledger") as ledger:
        answered_request(ledger, "r-1")
    assert (tmp_path / "disk" / "ledger" / "ledger.id").exists()


def _contents(place: Path) -> Any:
    if place.is_dir():
        return {
            str(found.relative_to(place)): found.read_bytes() for found in place.rglob("*") if found.is_file()
        }
    return place.read_bytes()


# file systems

# of a machine with a bind mount, an overlay, names with a space and a backslash, two mounts on one point
_MOUNTS = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
40 27 0:40 / /mnt/with\040space\011and\134 rw shared:7 - fuse.sshfs me@host:/a\040-\040b rw,user_id=0
41 27 0:41 / /mnt/twice rw - tmpfs tmpfs rw
42 41 0:42 / /mnt/twice rw - nfs4 server:/export rw,vers=4.2
43 27 254:0 /home/me/data /mnt/bound rw,relatime - ext4 /dev/vda rw
44 27 0:44 / /var/lib/docker/overlay rw - overlay overlay rw,lowerdir=/l,upperdir=/u
45 27 0:45 / /mnt/windows rw - 9p drvfs rw,trans=fd
46 27 0:46 / /mnt/share rw - cifs //server/share rw
4 27 0:47 / /mnt/short rw - smb3 //server/share rw
"""


@pytest.mark.parametrize(
    ("mount", "kind"),
    [
        *((27, "ext4"), (40, "fuse.sshfs"), (41, "tmpfs"), (42, "nfs4"), (43, "ext4"), (44, "overlay")),
        *((45, "9p"), (46, "cifs"), (4, "smb3"), (2, ""), (99, "")),
    ],
)
def test_the_mount_that_holds_an_open_file_is_found_by_its_number(mount: int, kind: str) -> None:
    fdinfo = b"pos:\t0\nflags:\t02100000\nmnt_id:\t%d\nino:\t2\n" % mount
    assert mount_type(_MOUNTS, fdinfo) == kind


def test_a_system_that_does_not_say_where_a_file_is_mounted_is_believed_to_be_fine() -> None:
    assert mount_type(_MOUNTS, b"pos:\t0\nflags:\t0\n") == ""
    assert mount_type(b"", b"mnt_id:\t27\n") == ""


@pytest.mark.parametrize("name", ["ledger", "not/there/yet", "with space\tand\\back\\040slash"])
def test_a_ledger_that_is_not_there_yet_is_on_its_nearest_parents_file_system(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with space\tand\\back\\040slash").mkdir()
    monkeypatch.chdir("/dev")  # what is relative is meant from here
    there = files._file_system_of(tmp_path)

    assert files._file_system_of(tmp_path / name) == there != ""
    assert files._file_system_of(Path(os.path.relpath(tmp_path / name))) == there
    assert files._file_system_of(Path("not there")) == files._file_system_of(Path("/dev")) == "devtmpfs"


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        *(("nfs", True), ("nfs4", True), ("cifs", True), ("smb3", True), ("9p", True), ("fuse.sshfs", True)),
        *(("fuseblk", True), ("virtiofs", True), ("overlay", False), ("ext4", False), ("xfs", False)),
        *(("btrfs", False), ("zfs", False), ("apfs", False), ("", False)),
    ],
)
def test_a_file_system_without_locks_and_syncs_to_rely_on_is_refused_before_anything_is_made(
    kind: str, refused: bool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_file_system_of", lambda folder: kind)
    if not refused:
        Ledger.open(path).close()
        assert not caplog.records
        return
    with pytest.raises(LedgerError) as told:
        Ledger.open(path)
    assert str(told.value) == (
        f"{path} is on {kind}, whose locks and syncs a ledger cannot rely on; use a local disk"
    )
    assert not path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A tmpfs of the size asked for, at a path with a space; asked again it has that size from then on."""
    if not _IS_ROOT or not shutil.which("mount"):
        pytest.skip("a file system can be mounted by root alone, with mount at hand")
    point = tmp_path / "small disk"
    point.mkdir(mode=0o700)

    def sized(size: str) -> Path:
        options = f"size={size},mode=700" if not point.is_mount() else f"remount,size={size}"
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
        return point

    yield sized
    if point.is_mount():
        subprocess.run(["umount", "--lazy", point], check=True)


def test_tmpfs_is_allowed_and_warned_of_once(
    small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk("8m") / "ledger"
    for _ in range(2):
        with Ledger.open(path) as ledger:
            answered_request(ledger, "r-1")
    assert [record.getMessage() for record in caplog.records] == [
        f"the ledger {path} is on tmpfs: it is lost when the machine stops"
    ]


def test_a_temporary_ledger_on_tmpfs_is_no_surprise(
    small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk("8m")))
    with Ledger.in_memory() as ledger:
        answered_request(ledger, "r-1")
    assert not caplog.records


# what cannot be a ledger


def test_a_disk_without_room_leaves_nothing_that_stops_the_next_opening(
    small_disk: Callable[[str], Path],
) -> None:
    refusals = []
    for pages in range(1, 100):  # each step of the creation finds the disk full once
        path = small_disk(f"{pages * 4}k") / f"ledger {pages}"
        refused = _refusal(path)
        assert not _open_below(path), "what is left open keeps the disk busy, and goes along at a fork"
        small_disk("8m")
        assert _refusal(path) is None
        with connect(path, views=("requests",)) as connection:
            assert ("r-1",) in connection.execute("select request_id from requests").fetchall()
        assert not list(path.rglob("*.tmp"))
        shutil.rmtree(path)
        if refused is None:
            break
        refusals.append(refused)
    assert len(refusals) > 5
    for refusal in refusals:
        assert "\n" not in refusal
        assert any(words in refusal for words in ("No space left", "make room")), refusal


def _open_below(path: Path) -> list[str]:
    """What this process has open there."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(str(path))]


def _refusal(path: Path) -> str | None:
    """Why a ledger could not be opened and written; None where it could."""
    try:
        with Ledger.open(path, auto_seal=False) as ledger:
            answered_request(ledger, "r-1")
    except LedgerError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("age_s", "goes"), [(3600, True), (1, False)])
def test_what_a_death_while_laying_out_left_is_removed_once_nobody_can_be_at_it(
    age_s: int, goes: bool, path: Path
) -> None:
    Ledger.open(path).close()
    left = [path / f"{name}.0123abcd.tmp" for name in (*layout._LAID_OUT, "price_books/ab12.json")]
    for leftover in left:
        leftover.write_bytes(b"half of it")
        os.utime(leftover, times=(time.time() - age_s,) * 2)
    Ledger.open(path).close()
    assert [leftover.exists() for leftover in left] == [not goes] * len(left)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: path.with_name("ledger").touch() or path.stat(), "is not a folder"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "is a symlink"),
        (lambda path: (path.mkdir(), (path / "journals").touch()), "journals is not a folder"),
        (lambda path: (path.mkdir(), (path / "state.db").mkdir()), "state.db"),
        (lambda path: (path.mkdir(), (path / "ledger.id").mkdir()), "ledger.id"),
        (lambda path: (path.mkdir(), (path / "ledger.id").touch()), "ledger.id is damaged"),
    ],
)
def test_what_stands_in_a_ledgers_place_is_refused_in_one_line_and_kept(
    path: Path, make: Callable[[Path], object], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(path)
    with pytest.raises(LedgerError, match=complaint) as refused:
        Ledger.open(path)
    assert "\n" not in str(refused.value)
    assert os.path.lexists(path)
    assert main(["seal", "--ledger", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 25)], ids=["a name", "a path"])
def test_a_path_that_is_too_long_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="File name too long") as refused:
        Ledger.open(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_folder_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="is not a folder"):
        Ledger.open(tmp_path / "file" / "ledger")


def test_what_may_not_be_written_or_looked_into_is_refused_in_one_line() -> None:
    told = without_rights("""
def refusal(mode, *names):
    folder = place.joinpath(*names)
    os.chmod(folder, mode)
    try:
        Ledger.open(place / "ledger").close()
        return "opened"
    except LedgerError as error:
        return str(error)
    finally:
        os.chmod(folder, 0o700)

found = [refusal(0o500)]
Ledger.open(place / "ledger").close()
names = [(), ("journals",), ("events",), ("ledger.id",), ("state.db",)]
found += [refusal(0, "ledger", *name) for name in names]
found += [refusal(0o500, "ledger", *name) for name in names[:1]]
found += [refusal(0, "ledger", "ledger.sql"), refusal(0o500, "ledger")]
(place / "ledger" / "ledger.sql").write_text("of an older version, so written anew")
found.append(refusal(0o500, "ledger"))
with Ledger.open(place / "ledger") as ledger:
    found.append(use(ledger))
print(json.dumps(found))
""")
    *refusals, requests = told

    assert requests == 2, "nothing was spoilt by it"
    for refusal in refusals:
        assert "\n" not in refusal
        assert "ermission denied" in refusal or "readonly" in refusal or "unable to open" in refusal, refusals
        assert ".tmp" not in refusal, "what is to be seen to is its folder"
    assert re.search(r"cannot be used: Permission denied; see the permissions of \S+/ledger$", refusals[-1])


def test_a_plain_file_of_the_ledger_that_was_there_keeps_its_mode(path: Path) -> None:
    Ledger.open(path).close()
    (path / "seal.lock").touch()
    (path / "seal.lock").chmod(0o640)
    with Ledger.open(path, auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
    assert stat.S_IMODE((path / "seal.lock").stat().st_mode) == 0o640


def test_many_processes_that_make_one_ledger_make_one(path: Path) -> None:
    program = "import sys; from ledger.ledger import Ledger; print(Ledger.open(sys.argv[1]).id)"
    made = [
        subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert len({process.communicate()[0] for process in made}) == 1
    assert [process.returncode for process in made] == [0] * 6
    assert not list(path.rglob("*.tmp"))
