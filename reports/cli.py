"""`bughive-costs`: what the ledger knows, on the command line.

Exit status: 0 fine; 1 what was asked for is not there, or not sound; 2 wrong usage, or a ledger that
cannot be read. An error is one line on stderr. Each command imports what it needs, when it runs.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from ledger.errors import BughiveError, DamagedLedger, NoSuchSession

if TYPE_CHECKING:
    from reports.options import Period
    from reports.render import Report

# Of click's, which typer brings along under a name of its own: what a wrong command line raises.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[1]

if TYPE_CHECKING:
    _CommandLine = TyperCommand
else:
    _CommandLine = object


class _Plain(_CommandLine):
    """Options are texts and flags, taken as they are.

    To turn a text into a text typer would load pydantic, in a third of the time of a whole report.
    """

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)
        for param in params:
            if not isinstance(param.process_value, partial):
                taken = partial(_as_given, param.required, param.process_value)
                param.process_value = taken  # type: ignore[method-assign]
        return params


class PlainCommand(_Plain, TyperCommand):
    """A command of this program."""


class PlainGroup(_Plain, TyperGroup):
    """All of them."""


def _as_given(required: bool, otherwise: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    if isinstance(value, str) or (value is None and not required):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return list(value)
    return otherwise(context, value)


app = typer.Typer(
    name="bughive-costs",
    cls=PlainGroup,
    help="What every request, retry and fallback cost.",
    epilog=(
        "Exit status: 0 fine, 1 no such session or damage found,"
        " 2 wrong usage or an unreadable ledger, 130 interrupted."
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
_ONCE = (
    "--session",
    "--since",
    "--until",
    "--last",
    "--format",
    "--ledger",
    "--tz",
    "--limit",
    "--seed",
    "--expect-head",
    "--compare",
    "--file",
    "--timeout",
    "--memory",
)

LedgerOption = Annotated[
    str | None,
    typer.Option("--ledger", help="The ledger's folder (else BUGHIVE_LEDGER, bughive.toml, ./data/ledger)."),
]
TzOption = Annotated[str, typer.Option("--tz", help="Where days begin, such as Europe/Berlin.")]
FormatOption = Annotated[str, typer.Option("--format", help="table, json, csv or markdown.")]
SinceOption = Annotated[str | None, typer.Option("--since", help="From this date or moment on.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Before this date or moment.")]
LastOption = Annotated[
    str | None, typer.Option("--last", help="The last 30m, 24h, 7d or 2w; mtd: this month.")
]
ByOption = Annotated[
    list[str] | None,
    typer.Option(
        "--by", help="tier, model, task, provider, session, day, hour or tag:KEY; several with commas."
    ),
]
DamageOption = Annotated[
    bool, typer.Option("--allow-damage", help="Read what can be read of a damaged ledger.")
]


@app.command(cls=PlainCommand)
def report(
    session: Annotated[str | None, typer.Option("--session", help="One session; else all.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    by: ByOption = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> _Page:
    """What was spent, by one session or in a period."""
    from reports.spend import spend_report

    within = _period(format, since, until, last, tz)
    path = _ledger_path(ledger, allow_damage)
    return _Page(
        spend_report(path, session_id=session, period=within, by=by, tz=tz, allow_damage=allow_damage), format
    )


@app.command(cls=PlainCommand)
def sessions(
    limit: Annotated[str, typer.Option("--limit", help="At most so many; 0: all.")] = "20",
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> _Page:
    """The sessions, the latest first."""
    from reports.options import count
    from reports.sessions import sessions_report

    within = _period(format, since, until, last, tz)
    most = count(limit, "--limit")
    path = _ledger_path(ledger, allow_damage)
    return _Page(sessions_report(path, period=within, limit=most, tz=tz, allow_damage=allow_damage), format)


@app.command(cls=PlainCommand)
def performance(
    by: ByOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="previous: against as long a time before.")
    ] = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> _Page:
    """How each model did: success, retries, latency, what an answer costs, what failures do."""
    from reports.comparison import comparison_report
    from reports.options import choice
    from reports.performance import performance_report

    within = _period(format, since, until, last, tz)
    if compare is not None:
        choice(compare, ("previous",), "--compare")
    path = _ledger_path(ledger, allow_damage)
    options: dict[str, Any] = {"by": by, "period": within, "tz": tz, "allow_damage": allow_damage}
    if compare is not None:
        return _Page(comparison_report(path, now=datetime.now(UTC), **options), format)
    for_people = format in ("table", "markdown")
    return _Page(performance_report(path, with_tasks=for_people and not by, **options), format)


@app.command(cls=PlainCommand)
def sql(
    select: Annotated[
        str | None, typer.Argument(metavar="[SELECT]", help="One SELECT over the ledger's views.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="The file that holds it; - is standard input.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--param", help="name=text or name:=12.5, for $name in the SQL; as often as needed."
        ),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="table, json, csv, markdown or parquet.")] = "table",
    timeout: Annotated[str, typer.Option("--timeout", help="Seconds it may take; 0: any.")] = "120",
    memory: Annotated[str, typer.Option("--memory", help="Memory it may take, such as 512MB.")] = "1GB",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> _Page | _Bytes:
    """Ask the ledger in SQL; nothing but the ledger can be read, and nothing written."""
    from reports.adhoc import SQL_FORMATS, Limits, parameters, sql_parquet, sql_report, sql_text
    from reports.options import UsageError, choice, count, time_zone

    choice(format, SQL_FORMATS, "--format")
    if format == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet is not for a terminal; send it into a file: > rows.parquet")
    time_zone(tz)
    text = sql_text(select, file)
    options: dict[str, Any] = {
        "parameters": parameters(param),
        "limits": Limits(count(timeout, "--timeout"), memory),
        "tz": tz,
        "allow_damage": allow_damage,
    }
    path = _ledger_path(ledger, allow_damage)
    if format == "parquet":
        return _Bytes(sql_parquet(path, text, **options))
    return _Page(sql_report(path, text, **options), format)


@app.command(cls=PlainCommand)
def schema(
    view: Annotated[str | None, typer.Argument(metavar="[VIEW]", help="One view; else all.")] = None,
    format: FormatOption = "table",
) -> _Page:
    """What the views are, and each column's type, unit and meaning."""
    from reports.dictionary import dictionary_report

    _period(format, None, None, None, "UTC")
    return _Page(dictionary_report(view), format)


@app.command(cls=PlainCommand)
def seal(ledger: LedgerOption = None) -> None:
    """Move what the journals hold into Parquet segments."""
    from ledger.ledger import Ledger
    from ledger.reader import existing_ledger
    from reports.integrity import counted

    with Ledger.open(existing_ledger(_ledger_path(ledger)), auto_seal=False) as opened:
        sealed = opened.seal()
    events = sum(batch.rows for batch in sealed.batches)
    segments, removed = len(sealed.batches), len(sealed.removed_journals)
    typer.echo(
        f"sealed {counted(events, 'event')} into {counted(segments, 'segment')},"
        f" removed {counted(removed, 'journal')}"
    )


@app.command(cls=PlainCommand)
def verify(
    expect_head: Annotated[
        str | None, typer.Option("--expect-head", help="A head kept earlier: the chain must still have it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    ledger: LedgerOption = None,
) -> _Text:
    """Prove that no event is lost, doubled or changed, and name what is; changes nothing."""
    from ledger.checks.findings import Head
    from ledger.verify import verify as verify_ledger
    from reports import integrity
    from reports.render import as_json as json_of

    kept = Head.parse(expect_head) if expect_head is not None else None
    found = verify_ledger(_ledger_path(ledger), expect_head=kept)
    text = json_of(integrity.verification_data(found)) if as_json else integrity.verification_text(found)
    return _Text(text, 0 if found.is_sound else 1)


@app.command(cls=PlainCommand)
def recover(ledger: LedgerOption = None) -> _Text:
    """Finish what crashed, and derive state.db anew."""
    from ledger.ledger import Ledger
    from reports.integrity import recovery_text

    return _Text(recovery_text(Ledger.recover(_ledger_path(ledger))))


@app.command(cls=PlainCommand)
def backup(
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Where: not there yet, or empty.")],
    ledger: LedgerOption = None,
) -> _Text:
    """Copy the ledger as it is now, while it is written to."""
    from ledger.backup import backup as backup_ledger
    from reports.integrity import backup_text

    return _Text(backup_text(backup_ledger(_ledger_path(ledger), destination)))


@app.command(cls=PlainCommand)
def demo(
    ledger: Annotated[str, typer.Option("--ledger", help="The demo's own ledger.")] = "data/demo",
    seed: Annotated[str, typer.Option("--seed", help="Another number, another crawl.")] = "7",
) -> None:
    """Play a crawl session against simulated providers, and show what it cost."""
    from rich.console import Console

    from reports.demo import run_demo
    from reports.options import count

    run_demo(Path(ledger).expanduser(), Console(), count(seed, "--seed"))


def _period(format: str, since: str | None, until: str | None, last: str | None, tz: str) -> Period:
    """The period asked for, once format and zone are known to be ones."""
    from reports.options import choice, period
    from reports.render import FORMATS

    choice(format, FORMATS, "--format")
    return period(since, until, last, tz, datetime.now(UTC))


def _ledger_path(named: str | None, allow_damage: bool = False) -> Path:
    """The ledger asked for. With --allow-damage stderr is told what is wrong with it."""
    from ledger.settings import Settings

    path = Settings.load().ledger_path if named is None else Path(named).expanduser()
    if allow_damage:
        from ledger.reader import connect

        try:
            connect(path, views=()).close()
        except DamagedLedger as damage:
            _failed(f"what is damaged is left out, and figures may be too small: {damage}", 0)
    return path


class _Text(NamedTuple):
    """What a command has to say, and its exit status; written as a page is."""

    text: str
    status: int = 0


class _Bytes(NamedTuple):
    """The same for what is no text."""

    bytes: bytes


class _Page(NamedTuple):
    """What a command has to show; written when the command is done, so that click sees no broken pipe."""

    report: Report
    format: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status; BUGHIVE_DEBUG=1 lets an unforeseen error show itself."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stdout is None:  # closed by the caller
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the encoding lacks is no error
    try:
        _refuse_repeated(given)
        result = app(given or ["--help"], standalone_mode=False)
        return _failed("interrupted", INTERRUPTED) if result == INTERRUPTED else _show(result)
    except BughiveError as error:
        return _failed(str(error), 1 if isinstance(error, NoSuchSession) else 2)
    except _CommandLineError as error:
        return _failed(getattr(error, "format_message", error.__str__)(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of the demo has seen enough
        return _give_up_output(0)
    except Exception as error:
        if os.environ.get("BUGHIVE_DEBUG"):
            raise
        return _failed(f"{type(error).__name__}: {error} (BUGHIVE_DEBUG=1 shows where)", 2)


def _show(result: object) -> int:
    """Write what a command returned; its exit status."""
    status = result.status if isinstance(result, _Text) else result if isinstance(result, int) else 0
    try:
        if isinstance(result, _Page):
            from reports.render import write

            write(result.report, result.format, sys.stdout)
        elif isinstance(result, _Text):
            sys.stdout.write(result.text)
        elif isinstance(result, _Bytes):
            sys.stdout.buffer.write(result.bytes)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        return _give_up_output(status)
    except OSError as error:
        return _give_up_output(_failed(f"the output cannot be written: {error.strerror}", 2))
    return status


def _give_up_output(status: int) -> int:
    """Keep Python from complaining at exit about what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _refuse_repeated(arguments: Sequence[str]) -> None:
    """An option given twice means only one of the two; click would take the last without a word."""
    from reports.options import UsageError

    names = [argument.split("=")[0] for argument in arguments if argument in _ONCE or "=" in argument]
    for name in _ONCE:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given more than once; give it once")


def _failed(message: str, status: int) -> int:
    from reports.render import harmless

    sys.stderr.write(f"bughive-costs: {harmless(' '.join(message.split()))}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
