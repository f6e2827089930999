"""The commands that ask the ledger: report, sessions, performance, sql, schema."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from reports import completion
from reports.command_line import (
    ByOption,
    Bytes,
    DamageOption,
    FormatOption,
    LastOption,
    LedgerOption,
    Page,
    PlainCommand,
    SessionOption,
    SinceOption,
    TzOption,
    UntilOption,
    asked_period,
    examples,
    ledger_path,
)

app = typer.Typer()


@app.command(
    cls=PlainCommand,
    epilog=examples(
        "report --session crawl_session_123",
        "report --last mtd --by tier,model",
        "report --since 2026-11-01 --until 2026-12-01 --by day --tz Europe/Berlin --format csv",
        "report --by tag:app --format json",
    ),
)
def report(
    session: SessionOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    by: ByOption = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> Page:
    """What was spent, by one session or in a period."""
    from reports.spend import spend_report

    within = asked_period(format, since, until, last, tz)
    path = ledger_path(ledger, allow_damage)
    return Page(
        spend_report(path, session_id=session, period=within, by=by, tz=tz, allow_damage=allow_damage), format
    )


@app.command(
    cls=PlainCommand,
    epilog=examples(
        "sessions --last 7d",
        "sessions --limit 0 --format csv",
    ),
)
def sessions(
    limit: Annotated[str, typer.Option("--limit", metavar="NUMBER", help="At most so many; 0: all.")] = "20",
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> Page:
    """The sessions, the latest first."""
    from reports.options import count
    from reports.sessions import sessions_report

    within = asked_period(format, since, until, last, tz)
    most = count(limit, "--limit")
    path = ledger_path(ledger, allow_damage)
    return Page(sessions_report(path, period=within, limit=most, tz=tz, allow_damage=allow_damage), format)


@app.command(
    cls=PlainCommand,
    epilog=examples(
        "performance --last 24h",
        "performance --by model,task",
        "performance --last 7d --compare previous",
    ),
)
def performance(
    by: ByOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    last: LastOption = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="previous",
            help="Against as long a time before; with --last or --since.",
            autocompletion=completion.comparisons,
        ),
    ] = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> Page:
    """How each model did: answers, retries, speed, and cost."""
    from reports.comparison import comparison_report
    from reports.options import choice
    from reports.performance import performance_report

    within = asked_period(format, since, until, last, tz)
    if compare is not None:
        choice(compare, ("previous",), "--compare")
    path = ledger_path(ledger, allow_damage)
    options: dict[str, Any] = {"by": by, "period": within, "tz": tz, "allow_damage": allow_damage}
    if compare is not None:
        return Page(comparison_report(path, now=datetime.now(UTC), **options), format)
    for_people = format in ("table", "markdown")
    return Page(performance_report(path, with_tasks=for_people and not by, **options), format)


@app.command(
    cls=PlainCommand,
    epilog=examples(
        'sql "select task, sum(cost_usd) as usd from attempts group by task"',
        "sql --file report.sql -p session=crawl_session_123 -p most:=20",
        'sql "select * from attempts" --format parquet > attempts.parquet',
    ),
)
def sql(
    select: Annotated[
        str | None, typer.Argument(metavar="SELECT", help="One SELECT over the ledger's views.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="The file that holds it; - is standard input."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--param",
            metavar="NAME=TEXT",
            help="For $name in the SQL; name:=12.5 is a number. As often as needed.",
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, json, csv, markdown or parquet.",
            autocompletion=completion.sql_formats,
        ),
    ] = "table",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="SECONDS", help="Seconds it may take; 0: any.")
    ] = "120",
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Memory it may take, such as 512MB.")
    ] = "1GB",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
    allow_damage: DamageOption = False,
) -> Page | Bytes:
    """Ask in SQL: one SELECT over the views. Nothing else can be read, and nothing written."""
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
    path = ledger_path(ledger, allow_damage)
    if format == "parquet":
        return Bytes(sql_parquet(path, text, **options))
    return Page(sql_report(path, text, **options), format)


@app.command(
    cls=PlainCommand,
    epilog=examples(
        "schema",
        "schema attempts",
    ),
)
def schema(
    view: Annotated[
        str | None,
        typer.Argument(metavar="VIEW", help="One view; else all.", autocompletion=completion.views),
    ] = None,
    format: FormatOption = "table",
) -> Page:
    """What the views are, and each column's type, unit and meaning."""
    from reports.dictionary import dictionary_report

    asked_period(format, None, None, None, "UTC")
    return Page(dictionary_report(view), format)
