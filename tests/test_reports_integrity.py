"""`verify`, `recover` and `backup` as they are typed: what they show, and their exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from played import History

from ledger import Ledger
from ledger.checks.findings import Finding, Run
from ledger.manifest import read_manifest
from reports.cli import main
from reports.integrity import recovery_text

HISTORY = """
    session=crawl_1 task=analyze_page
        REASONING   503
        FAST        ok    in=1000 out=200
    session=crawl_2 task=extract_forms
        GENERAL     ok    in=500 out=90
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Path]:
    """One segment, and a journal that says no more."""
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.ledger.seal()
    yield history.path
    history.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def flip_a_segment(ledger: Path) -> str:
    (batch,) = read_manifest(ledger)[0]
    data = bytearray((ledger / batch.file).read_bytes())
    data[500] ^= 1
    (ledger / batch.file).write_bytes(data)
    return batch.file


def test_a_sound_ledger_is_said_to_be_sound(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "verify", "--ledger", ledger)

    (batch,) = read_manifest(ledger)[0]
    assert (status, err) == (0, "")
    assert out == (
        "Sound: no event is lost, doubled or changed\n"
        "\n"
        "  Events    12 in 1 segment and 1 journal\n"
        "  Requests  2 with 3 attempts\n"
        "  Cost      $0.000237\n"
        f"  Head      {batch.ledger_id}:1:{batch.sha256}\n"
    )


def test_damage_is_told_with_its_place_and_what_to_do(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = flip_a_segment(ledger)

    status, out, err = run(capsys, "verify", "--ledger", ledger)

    (batch,) = read_manifest(ledger)[0]
    (journal_id,) = batch.covers
    assert (status, err) == (1, "")
    assert out.startswith("Damaged: 1 finding\n")
    assert f"\naltered-segment: {file}, batch 1, events 1 to 12 of journal {journal_id}\n" in out
    assert "\n  to do: put the segment back from a backup\n" in out


def test_json_says_the_same(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = flip_a_segment(ledger)

    status, out, _ = run(capsys, "verify", "--json", "--ledger", ledger)

    said = json.loads(out)
    (finding,) = said["findings"]
    assert (status, said["sound"]) == (1, False)
    assert (finding["kind"], finding["file"], finding["batch"]) == ("altered-segment", file, 1)
    assert (finding["first_seq"], finding["last_seq"], len(finding["journal_id"])) == (1, 12, 32)
    assert {"what", "remedy", "events"} < finding.keys()
    assert said["counts"]["cost_usd"] == "0.000237000000"
    assert said["head"]["text"] == f"{said['head']['ledger_id']}:1:{said['head']['sha256']}"


def test_warnings_and_notes_do_not_fail(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ledger / "ledger.sql").chmod(0o644)
    (ledger / "state.db").rename(ledger.parent / "elsewhere")
    for name in ("state.db-wal", "state.db-shm"):
        (ledger / name).unlink(missing_ok=True)

    status, out, _ = run(capsys, "verify", "--ledger", ledger)

    assert status == 0
    assert "\nwarning: permissions: ledger.sql\n" in out
    assert "\nnote: 1 × not-derived: " in out


def test_a_kept_head_is_asked_for(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (batch,) = read_manifest(ledger)[0]
    kept = f"{batch.ledger_id}:1:{batch.sha256}"
    other = f"{batch.ledger_id}:1:{'0' * 64}"

    assert run(capsys, "verify", "--expect-head", kept, "--ledger", ledger)[0] == 0
    status, out, _ = run(capsys, "verify", "--expect-head", other, "--ledger", ledger)

    assert (status, "head: events/date=" in out, "the chain was written anew" in out) == (1, True, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--expect-head", "nonsense"], "'nonsense' is no head; expected ledger_id:batch:sha256"),
        (["--expect-head", "a", "--expect-head", "b"], "--expect-head is given more than once"),
    ],
)
def test_a_head_that_is_none_is_wrong_usage(
    ledger: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    status, out, err = run(capsys, "verify", *arguments, "--ledger", ledger)

    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize("command", [["verify"], ["recover"], ["backup", "copy"]])
def test_no_ledger_ends_in_status_2_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    status, out, err = run(capsys, *command, "--ledger", tmp_path / "nothing")

    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "there is no ledger at" in err
    assert not (tmp_path / "nothing").exists()


def test_names_from_a_folder_do_not_act_on_the_terminal(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ledger / "journals" / "\x1b[31mred\n").touch()

    status, out, _ = run(capsys, "verify", "--ledger", ledger)

    assert (status, "\x1b" in out) == (1, False)
    assert "foreign-file: journals/\\x1b[31mred\\n\n" in out


def test_recover_finishes_what_crashed_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.play("session=crawl_3\n    FAST pending ceiling=0.5")
    history.close()
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (history.path / name).write_bytes(b"garbage")
    assert run(capsys, "verify", "--ledger", history.path)[0] == 1

    status, out, err = run(capsys, "recover", "--ledger", history.path)

    assert (status, err) == (0, "")
    assert out == (
        "ended 1 journal of dead processes: 1 attempt abandoned, 1 request failed; derived state.db anew\n"
    )
    assert run(capsys, "verify", "--ledger", history.path)[0] == 0
    assert run(capsys, "recover", "--ledger", history.path)[1] == (
        "no journal of a dead process was left; derived state.db anew\n"
    )


def test_what_a_disk_has_lost_is_said() -> None:
    from ledger.recovery import Recovered
    from ledger.sealing import Recovery

    text = recovery_text(Recovery([Recovered("a" * 32, 2, 1, 3)], 1))

    assert text == (
        "ended 1 journal of dead processes: 2 attempts abandoned, 1 request failed; listed 1 segment again;"
        " derived state.db anew\n"
        "the disk has lost 3 events that state.db had counted\n"
    )


def test_an_end_that_a_disk_has_lost_is_told_of_for_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.close()
    with Ledger.open(history.path, auto_seal=False):
        pass  # state.db has counted all of it
    (journal,) = (history.path / "journals").glob("0*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]))
    assert run(capsys, "verify", "--ledger", history.path)[0] == 1

    status, out, _ = run(capsys, "recover", "--ledger", history.path)

    assert (status, out.splitlines()[1]) == (0, "the disk has lost 3 events that state.db had counted")
    for seals in (False, True):
        if seals:
            run(capsys, "seal", "--ledger", history.path)
        status, out, _ = run(capsys, "verify", "--ledger", history.path)
        assert (status, out.splitlines()[0]) == (
            0,
            "Sound, but for the end of 1 journal that a disk had lost before",
        )
        assert "note: 1 × cut-short: " in out


def test_recover_names_a_journal_that_it_leaves_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.close()
    (journal,) = (history.path / "journals").glob("0*.jsonl")
    journal.write_bytes(journal.read_bytes().replace(b'"seq":3,', b'"seq":4,', 1))

    status, out, _ = run(capsys, "recover", "--ledger", history.path)

    assert status == 1
    assert f"left as it is: {journal}: " in out
    assert run(capsys, "verify", "--ledger", history.path)[0] == 1


def test_backup_says_what_it_copied(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "backup", tmp_path / "copy", "--ledger", ledger)

    (batch,) = read_manifest(ledger)[0]
    assert (status, err) == (0, "")
    assert out.startswith("copied 1 segment and 1 journal, ")
    assert out.endswith(f" to {tmp_path / 'copy'}\nhead {batch.ledger_id}:1:{batch.sha256}\n")
    assert run(capsys, "verify", "--ledger", tmp_path / "copy")[0] == 0


def test_a_backup_that_is_there_already_is_not_written_over(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "backup", tmp_path / "copy", "--ledger", ledger)

    status, out, err = run(capsys, "backup", tmp_path / "copy", "--ledger", ledger)

    assert (status, out) == (2, "")
    assert "is not empty; name a place that is not there yet" in err


def test_a_reader_that_leaves_early_does_not_hide_the_damage(ledger: Path) -> None:
    flip_a_segment(ledger)
    read_end, write_end = os.pipe()
    os.close(read_end)

    done = subprocess.run(
        [sys.executable, "-m", "reports.cli", "verify", "--ledger", str(ledger)],
        cwd=Path(__file__).parents[1],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)

    assert (done.returncode, done.stderr) == (1, b"")


def test_a_finding_names_its_first_run() -> None:
    finding = Finding("k", "f", "w", "r", events=[Run("j", 3, 5), Run("i", 1, 1)])

    assert (finding.journal_id, finding.first_seq, finding.last_seq) == ("j", 3, 5)
    assert (Finding("k", "f", "w", "r").journal_id, finding.batch) == (None, None)


def test_the_commands_take_the_default_ledger(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUGHIVE_LEDGER", str(ledger))

    assert run(capsys, "verify")[0] == 0
    Ledger.open(ledger, auto_seal=False).close()
    assert run(capsys, "verify")[0] == 0
