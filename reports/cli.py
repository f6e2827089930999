"""`bughive-costs`: what the ledger knows, on the command line.

Exit status: 0 fine; 1 what was asked for is not there; 2 wrong usage, or a ledger that cannot be
read. An error is one line on stderr. Each command imports what it needs, when it runs.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ledger.errors import BughiveError, NoSuchSession

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
    return otherwise(context, value)


app = typer.Typer(
    name="bughive-costs",
    cls=PlainGroup,
    help="What every request, retry and fallback cost.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

LedgerOption = Annotated[
    str | None,
    typer.Option("--ledger", help="The ledger's folder (else BUGHIVE_LEDGER, bughive.toml, ./data/ledger)."),
]
TzOption = Annotated[str, typer.Option("--tz", help="Where days begin, such as Europe/Berlin.")]
FormatOption = Annotated[str, typer.Option("--format", help="table, json, csv or markdown.")]
SinceOption = Annotated[str | None, typer.Option("--since", help="From this date or moment on.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Before this date or moment.")]
LastOption = Annotated[str | None, typer.Option("--last", help="The last 30m, 24h, 7d or 2w.")]
DamageOption = Annotated[
    bool, typer.Option("--allow-damage", help="Read what can be read of a damaged ledger.")
]


@app.command(cls=PlainCommand)
def report(
    session: Annotated[str | None, typer.Option("--session", help="One session; else all.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="tier, model, task, provider, session, day, hour or tag:KEY."),
    ] = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> None:
    """What was spent, by one session or in a period."""
    from reports.spend import spend_report

    within = _period(format, since, until, last, tz)
    path = _ledger_path(ledger)
    _write(
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
) -> None:
    """The sessions, the latest first."""
    from reports.options import count
    from reports.sessions import sessions_report

    within = _period(format, since, until, last, tz)
    most = count(limit, "--limit")
    path = _ledger_path(ledger)
    _write(sessions_report(path, period=within, limit=most, tz=tz, allow_damage=allow_damage), format)


@app.command(cls=PlainCommand)
def sql(
    select: Annotated[str, typer.Argument(metavar="SELECT", help="One SELECT over the ledger's views.")],
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> None:
    """Ask the ledger in SQL; nothing but the ledger can be read, and nothing written."""
    from reports.adhoc import sql_report

    _period(format, None, None, None, tz)
    _write(sql_report(_ledger_path(ledger), select, tz=tz, allow_damage=allow_damage), format)


@app.command(cls=PlainCommand)
def seal(ledger: LedgerOption = None) -> None:
    """Move what the journals hold into Parquet segments."""
    from ledger.ledger import Ledger
    from ledger.reader import existing_ledger

    with Ledger.open(existing_ledger(_ledger_path(ledger)), auto_seal=False) as opened:
        sealed = opened.seal()
    events = sum(batch.rows for batch in sealed.batches)
    typer.echo(
        f"sealed {events:,} events into {len(sealed.batches)} segments,"
        f" removed {len(sealed.removed_journals)} journals"
    )


@app.command(cls=PlainCommand)
def demo(
    ledger: Annotated[str, typer.Option("--ledger", help="The demo's own ledger.")] = "data/demo",
    seed: Annotated[str, typer.Option("--seed", help="Another number, another crawl.")] = "7",
) -> None:
    """Play a crawl session against simulated providers, and show what it cost."""
    from rich.console import Console

    from reports.demo import run_demo
    from reports.options import count

    run_demo(Path(ledger), Console(), count(seed, "--seed"))


def _period(format: str, since: str | None, until: str | None, last: str | None, tz: str) -> Period:
    """The period asked for, once format and zone are known to be ones."""
    from reports.options import choice, period
    from reports.render import FORMATS

    choice(format, FORMATS, "--format")
    return period(since, until, last, tz, datetime.now(UTC))


def _ledger_path(named: str | None) -> Path:
    if named is not None:
        return Path(named)
    from ledger.settings import Settings

    return Settings.load().ledger_path


def _write(report: Report, format: str) -> None:
    from reports.render import write

    write(report, format, sys.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status; BUGHIVE_DEBUG=1 lets an unforeseen error show itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the encoding lacks is no error
    try:
        given = sys.argv[1:] if arguments is None else arguments
        status = app(given or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BughiveError as error:
        return _failed(str(error), 1 if isinstance(error, NoSuchSession) else 2)
    except _CommandLineError as error:
        return _failed(getattr(error, "format_message", error.__str__)(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", 130)
    except BrokenPipeError:  # the reader has seen enough; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("BUGHIVE_DEBUG"):
            raise
        return _failed(f"{type(error).__name__}: {error} (BUGHIVE_DEBUG=1 shows where)", 2)


def _failed(message: str, status: int) -> int:
    from reports.render import harmless

    sys.stderr.write(f"bughive-costs: {harmless(' '.join(message.split()))}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
