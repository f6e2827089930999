"""`bughive-costs`: what the ledger knows, on the command line.

Exit status: 0 fine; 1 what was asked for is not there, or not sound; 2 wrong usage, or a ledger that
cannot be read. An error is one line on stderr. Each command imports what it needs, when it runs.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Annotated

import typer

from ledger.errors import BughiveError, NoSuchSession
from reports import queries, spending
from reports.command_line import (
    Bytes,
    LedgerOption,
    Page,
    PlainCommand,
    PlainGroup,
    Text,
    TzOption,
    examples,
    failed,
    ledger_path,
)

# Of click's, which typer brings along under a name of its own: what a wrong command line raises.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[1]
INTERRUPTED = 130
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"bughive-costs {version('bughive-costs')}")
        raise typer.Exit


app = typer.Typer(
    name="bughive-costs",
    cls=PlainGroup,
    help="What every request, retry and fallback cost.",
    epilog=(
        "bughive-costs COMMAND --help shows examples. Exit status: 0 fine, 1 no such session, damage found or"
        " a budget broken, 2 wrong usage or an unreadable ledger, 130 interrupted."
    ),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VersionOption = Annotated[
    bool,
    typer.Option("--version", help="Print the version, and no more.", is_eager=True, callback=_print_version),
]


@app.callback()
def _of_all(version: VersionOption = False) -> None:
    """Options that come before the command."""


app.registered_commands += queries.app.registered_commands + spending.app.registered_commands
app.registered_groups += spending.app.registered_groups


@app.command(cls=PlainCommand, epilog=examples("seal", "seal --ledger data/demo"))
def seal(ledger: LedgerOption = None) -> None:
    """Move what the journals hold into Parquet segments."""
    from ledger.ledger import Ledger
    from ledger.reader import existing_ledger
    from reports.integrity import counted

    with Ledger.open(existing_ledger(ledger_path(ledger)), auto_seal=False) as opened:
        sealed = opened.seal()
    events = sum(batch.rows for batch in sealed.batches)
    segments, removed = len(sealed.batches), len(sealed.removed_journals)
    typer.echo(
        f"sealed {counted(events, 'event')} into {counted(segments, 'segment')},"
        f" removed {counted(removed, 'journal')}"
    )


@app.command(cls=PlainCommand, epilog=examples("verify", 'verify --expect-head "$(cat head.txt)" --json'))
def verify(
    expect_head: Annotated[
        str | None,
        typer.Option(
            "--expect-head", metavar="HEAD", help="A head kept earlier: the chain must still have it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    ledger: LedgerOption = None,
) -> Text:
    """Prove that no event is lost, doubled or changed. What is wrong is named; nothing is changed."""
    from ledger.checks.findings import Head
    from ledger.verify import verify as verify_ledger
    from reports import integrity
    from reports.render import as_json as json_of

    kept = Head.parse(expect_head) if expect_head is not None else None
    found = verify_ledger(ledger_path(ledger), expect_head=kept)
    text = json_of(integrity.verification_data(found)) if as_json else integrity.verification_text(found)
    return Text(text, 0 if found.is_sound else 1)


@app.command(cls=PlainCommand, epilog=examples("recover", "recover --ledger data/demo"))
def recover(ledger: LedgerOption = None) -> Text:
    """Finish what crashed, and derive state.db anew."""
    from ledger.ledger import Ledger
    from reports.integrity import recovery_text

    done = Ledger.recover(ledger_path(ledger))
    return Text(recovery_text(done), 1 if done.damaged else 0)


@app.command(cls=PlainCommand, epilog=examples("backup /mnt/backup/ledger-2026-11-22"))
def backup(
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Where: not there yet, or empty.")],
    ledger: LedgerOption = None,
) -> Text:
    """Copy the ledger as it is now, while it is written to."""
    from ledger.backup import backup as backup_ledger
    from reports.integrity import backup_text

    return Text(backup_text(backup_ledger(ledger_path(ledger), destination)))


@app.command(
    cls=PlainCommand, epilog=examples("nightly", "nightly --date 2026-11-22 --tz Europe/Berlin --out reports")
)
def nightly(
    date: Annotated[
        str, typer.Option("--date", metavar="DAY", help="The day: 2026-11-22, today or yesterday.")
    ] = "yesterday",
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="The folder to write to.")
    ] = "data/nightly",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
) -> Text:
    """Write a day's page, and its figures as JSON, CSV and Parquet. Seals and verifies first."""
    from reports.nightly import day_of
    from reports.nightly import nightly as report_on

    now = datetime.now(UTC)
    day = day_of(date, tz, now)
    is_over = day < day_of("today", tz, now)
    done = report_on(ledger_path(ledger), day, Path(out).expanduser(), tz=tz, is_over=is_over)
    return Text(f"{done.summary}\n", 0 if done.is_well else 1)


@app.command(cls=PlainCommand, epilog=examples("demo", "demo --ledger /tmp/demo --seed 8"))
def demo(
    ledger: Annotated[
        str, typer.Option("--ledger", metavar="PATH", help="The demo's own ledger.")
    ] = "data/demo",
    seed: Annotated[
        str, typer.Option("--seed", metavar="NUMBER", help="Another number, another crawl.")
    ] = "7",
) -> None:
    """Play a crawl against simulated providers, and show its cost."""
    from rich.console import Console

    from reports.demo import run_demo
    from reports.options import count

    run_demo(Path(ledger).expanduser(), Console(), count(seed, "--seed"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status; BUGHIVE_DEBUG=1 lets an unforeseen error show itself."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stdout is None:  # closed by the caller
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the encoding lacks is no error
    with _noting_ctrl_c() as pressed:
        try:
            return _show(app(given or ["--help"], prog_name="bughive-costs", standalone_mode=False))
        except (Exception, KeyboardInterrupt) as error:
            return _interrupted() if pressed else _told(error)


@contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """Keep in the list that one came. What is raised next is of it: a KeyboardInterrupt, or what a library
    made of that, such as a RuntimeError of DuckDB."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if _is_importing(frame):  # an exception there makes a native module abort the process
            os._exit(_interrupted())
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    is_usual = before is signal.default_int_handler and current_thread() is main_thread()
    if is_usual:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, before)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _interrupted() -> int:
    return failed("interrupted", INTERRUPTED)


def _told(error: BaseException) -> int:
    """Say in a line what went wrong; the exit status. Raises the unforeseen again where debugging."""
    if isinstance(error, BughiveError):
        return failed(str(error), 1 if isinstance(error, NoSuchSession) else 2)
    if isinstance(error, _CommandLineError):
        return failed(_with_advice(error), 2)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _interrupted()
    if isinstance(error, BrokenPipeError):  # the reader of the demo has seen enough
        return _give_up_output(0)
    if isinstance(error, OSError) and error.filename is None and error.errno in _CANNOT_WRITE:  # help
        return _output_failed(error)
    if os.environ.get("BUGHIVE_DEBUG"):
        raise error
    return failed(f"{type(error).__name__}: {error} (BUGHIVE_DEBUG=1 shows where)", 2)


def _with_advice(error: Exception) -> str:
    """What is wrong with a command line, and whose help tells how it is meant."""
    said: str = getattr(error, "format_message", error.__str__)()
    if said.endswith("?"):  # Did you mean …?
        return said
    context = getattr(error, "ctx", None)
    return f"{said.rstrip('.')}; see {context.command_path if context else 'bughive-costs'} --help"


def _show(result: object) -> int:
    """Write what a command returned; its exit status."""
    if result == INTERRUPTED:  # as typer tells of a Ctrl-C
        return _interrupted()
    if isinstance(result, (Text, Bytes, Page)):
        status = result.status
    else:
        status = result if isinstance(result, int) else 0
    try:
        if isinstance(result, Page):
            from reports.render import write

            write(result.report, result.format, sys.stdout)
        elif isinstance(result, Text):
            sys.stdout.write(result.text)
        elif isinstance(result, Bytes):
            sys.stdout.buffer.write(result.bytes)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        return _give_up_output(status)
    except OSError as error:
        return _output_failed(error)
    return status


def _output_failed(error: OSError) -> int:
    return _give_up_output(failed(f"the output cannot be written: {error.strerror}", 2))


def _give_up_output(status: int) -> int:
    """Keep Python from complaining at exit about what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
