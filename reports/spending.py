"""The commands about money that is to come or not yet known: budget, prices, settle."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from reports.command_line import (
    AmountCommand,
    FormatOption,
    LedgerOption,
    Page,
    PlainCommand,
    PlainGroup,
    Text,
    TzOption,
    asked_period,
    examples,
    failed,
    ledger_path,
)

if TYPE_CHECKING:
    from reports.budgets import BudgetList

app = typer.Typer()

budget_app = typer.Typer(
    cls=PlainGroup,
    help="Limits: set them, see what is left, and why one refused.",
    add_completion=False,
)
app.add_typer(budget_app, name="budget")


@budget_app.command(
    "set",
    cls=AmountCommand,
    epilog=examples(
        "budget set 25 --scope day --tz Europe/Berlin",
        "budget set 2.50 --scope session",
        "budget set none --scope day",
    ),
)
def budget_set(
    limit: Annotated[str, typer.Argument(metavar="USD", help="The limit, such as 5.00; none lifts it.")],
    scope: Annotated[
        str,
        typer.Option(
            "--scope", metavar="SCOPE", help="request, session, task, tier, model, day, month or all."
        ),
    ],
    scope_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Which session, task, tier or model; else each of them."),
    ] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="MODE", help="hard (refuses) or warn.")] = "hard",
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: Annotated[
        str,
        typer.Option("--tz", metavar="ZONE", help="Where its days and months begin, such as Europe/Berlin."),
    ] = "UTC",
) -> Page:
    """Set a limit, or lift it. It holds for every attempt that begins from now on."""
    from reports.budgets import budget_list, change_budget

    asked_period(format, None, None, None, "UTC")
    path = ledger_path(ledger)
    change_budget(path, scope, scope_id, limit, mode, tz, tell=lambda note: failed(note, 0))
    return Page(budget_list(path), format)


@budget_app.command("list", cls=PlainCommand, epilog=examples("budget list", "budget list --format csv"))
def list_budgets(format: FormatOption = "table", ledger: LedgerOption = None) -> Page:
    """Each budget: its limit, what is left, and when that is gone.

    Also what is spent, reserved and in doubt. It is gone by then if all goes on at the present rate.
    """
    return Page(_budgets(format, ledger), format)


@budget_app.command("check", cls=PlainCommand, epilog=examples("budget check --session crawl_session_123"))
def check_budgets(
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Those that hold for one session; else all.")
    ] = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
) -> Page:
    """The same, with exit status 1 where a budget is used up."""
    found = _budgets(format, ledger, session)
    return Page(found, format, 1 if found.exceeded else 0)


def _budgets(format: str, ledger: str | None, session: str | None = None) -> BudgetList:
    """Those in force; stderr is told what bughive.toml says that is not."""
    from ledger.settings import Settings
    from reports.budgets import budget_list

    asked_period(format, None, None, None, "UTC")
    found = budget_list(ledger_path(ledger), session_id=session, settings=Settings.load())
    if found.to_come:
        failed(found.to_come, 0)
    return found


@budget_app.command("explain", cls=PlainCommand, epilog=examples("budget explain REQUEST_ID"))
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="A request that was refused.")],
    format: FormatOption = "table",
    ledger: LedgerOption = None,
) -> Page:
    """Why a request was refused, number by number."""
    from reports.budgets import refusal

    asked_period(format, None, None, None, "UTC")
    return Page(refusal(ledger_path(ledger), request_id), format)


prices_app = typer.Typer(
    cls=PlainGroup,
    help="What tokens cost: the book in force, published prices.",
    add_completion=False,
)
app.add_typer(prices_app, name="prices")


@prices_app.command("list", cls=PlainCommand, epilog=examples("prices list --at 2026-06-01"))
def list_prices(
    at: Annotated[
        str | None, typer.Option("--at", metavar="DATE", help="In force at this date or moment; else now.")
    ] = None,
    book: Annotated[
        str | None,
        typer.Option(
            "--book", metavar="HASH", help="A book by its hash, as events name it; the ledger keeps them."
        ),
    ] = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
) -> Page:
    """The prices in force with their source, and what has none."""
    from reports.prices import moment_of, price_list

    asked_period(format, None, None, None, "UTC")
    moment = moment_of(at, datetime.now(UTC))
    return Page(price_list(ledger_path(ledger), at=moment, book_hash=book), format)


@prices_app.command("diff", cls=PlainCommand, epilog=examples("prices diff", "prices diff --format csv"))
def diff_prices(format: FormatOption = "table", ledger: LedgerOption = None) -> Page:
    """Where they differ from those of genai-prices.

    With what the last 30 days cost by each.
    """
    from reports.prices import price_diff

    asked_period(format, None, None, None, "UTC")
    return Page(price_diff(ledger_path(ledger), now=datetime.now(UTC)), format)


@prices_app.command(
    "import", cls=PlainCommand, epilog=examples("prices import", "prices import claude-opus-4-5-20251101")
)
def take_prices(
    model: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="These; else all that differ.")
    ] = None,
) -> Text:
    """Write published prices into bughive.toml.

    There they win over the book that ships.
    """
    from reports.prices import import_prices

    file, taken = import_prices(model or (), file=None, now=datetime.now(UTC))
    return Text(
        f"{', '.join(taken)}: now in {file}\n" if taken else "no price differs; nothing was changed\n"
    )


@app.command(
    cls=AmountCommand,
    epilog=examples(
        "settle --as unbilled ATTEMPT_ID",
        "settle --as billed 0.0042 ATTEMPT_ID --reason 'the invoice says so'",
        "settle --as unbilled --before 2026-11-01",
    ),
)
def settle(
    found_out: Annotated[
        str | None, typer.Option("--as", metavar="unbilled|billed", help="What was found out; needed.")
    ] = None,
    amount: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AMOUNT] [ATTEMPT_ID]", help="USD with billed; one attempt."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="DATE", help="All in doubt that started before this date or moment."
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="How it is known.")] = None,
    format: FormatOption = "table",
    ledger: LedgerOption = None,
    tz: TzOption = "UTC",
) -> Page:
    """Say what attempts in doubt have cost, once that is known."""
    from reports.options import moment_named, time_zone
    from reports.settling import settle as settle_attempts
    from reports.settling import what_is_settled

    asked_period(format, None, None, None, tz)
    until = moment_named(before, time_zone(tz), "--before") if before is not None else None
    billed_usd, attempt_id = what_is_settled(found_out, amount or (), until)
    path = ledger_path(ledger)
    return Page(
        settle_attempts(path, attempt_id=attempt_id, before=until, billed_usd=billed_usd, reason=reason),
        format,
    )
