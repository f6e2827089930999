"""What the commands share: how they are parsed, the options they have in common, and what they return."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from ledger.errors import DamagedLedger
from reports import completion
from reports.options import Period, UsageError

if TYPE_CHECKING:
    from reports.render import Report

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
                if param.param_type_name == "argument":
                    _name_plainly(param)
        return params


class PlainCommand(_Plain, TyperCommand):
    """A command of this program."""

    def invoke(self, ctx: Any) -> Any:
        """As typer does; a damaged ledger is told of with the option that reads around it, where that is."""
        try:
            return super().invoke(ctx)
        except DamagedLedger as damage:
            if ctx.params.get("allow_damage") is False:
                raise DamagedLedger(f"{damage}, or read around it with --allow-damage") from damage
            raise

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does. Raises UsageError for an option given twice: it means only one of the two, and
        click would take the last without a word."""
        once = {name for param in self.get_params(ctx) if not _is_many(param) for name in param.opts}
        before_dashes = args[: args.index("--")] if "--" in args else args
        given = [argument.partition("=")[0] for argument in before_dashes]
        if twice := next((name for name in given if name in once and given.count(name) > 1), None):
            raise UsageError(f"{twice} is given more than once; give it once")
        return super().parse_args(ctx, args)


class AmountCommand(PlainCommand):
    """One with an amount among its arguments: below 0 it would be taken for an option that is not there."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As PlainCommand. Raises UsageError for a negative amount that is not an option's value."""
        take_a_value = {name for param in self.get_params(ctx) if not _is_flag(param) for name in param.opts}
        for before, word in pairwise(["", *args]):
            if before not in take_a_value and re.match(r"-\$?\.?\d", word):
                raise UsageError(f"an amount of USD is from 0 to below 1,000,000, not {word}")
        return super().parse_args(ctx, args)


class PlainGroup(_Plain, TyperGroup):
    """Several of them."""


def _name_plainly(argument: Any) -> None:
    """In help an argument is what its metavar says; its type would only add <str>, as all are texts."""
    name = argument.display_name_raw
    in_usage = name if argument.required or name.startswith("[") else f"[{name}]"
    argument.display_type_rich = lambda ctx: None
    argument.get_usage_pieces = lambda ctx: [in_usage]


def _is_many(param: Any) -> bool:
    """Whether more than one of it is fine: of a list, a flag, or what stands by its place alone."""
    return bool(getattr(param, "multiple", True)) or _is_flag(param)


def _is_flag(param: Any) -> bool:
    return bool(getattr(param, "is_flag", False))


def _as_given(required: bool, otherwise: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    if isinstance(value, str) or (value is None and not required):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return list(value)
    return otherwise(context, value)


def examples(*lines: str) -> str:
    """What stands under a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  bughive-costs {line}" for line in lines)


LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="PATH",
        help="The ledger's folder (else BUGHIVE_LEDGER, bughive.toml, ./data/ledger).",
    ),
]
TzOption = Annotated[
    str,
    typer.Option(
        "--tz",
        metavar="ZONE",
        help="Where days begin, such as Europe/Berlin.",
        autocompletion=completion.time_zones,
    ),
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="table, json, csv or markdown.",
        autocompletion=completion.formats,
    ),
]
SessionOption = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="ID", help="One session; else all.", autocompletion=completion.sessions
    ),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="DATE", help="From this date or moment on.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="DATE", help="Before this date or moment.")
]
LastOption = Annotated[
    str | None,
    typer.Option(
        "--last",
        metavar="SPAN",
        help="The last 30m, 24h, 7d or 2w; mtd: this month so far.",
        autocompletion=completion.spans,
    ),
]
ByOption = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        metavar="KEY",
        help="tier, model, task, provider, session, day, hour or tag:NAME; several with commas.",
        autocompletion=completion.keys,
    ),
]
DamageOption = Annotated[
    bool, typer.Option("--allow-damage", help="Read what can be read of a damaged ledger.")
]


class Text(NamedTuple):
    """What a command has to say, and its exit status; written as a page is."""

    text: str
    status: int = 0


class Bytes(NamedTuple):
    """The same for what is no text."""

    bytes: bytes
    status: int = 0


class Page(NamedTuple):
    """What a command has to show; written when the command is done, so that click sees no broken pipe."""

    report: Report
    format: str
    status: int = 0


def asked_period(format: str, since: str | None, until: str | None, last: str | None, tz: str) -> Period:
    """The period asked for, once format and zone are known to be ones."""
    from reports.options import choice, period
    from reports.render import FORMATS

    choice(format, FORMATS, "--format")
    return period(since, until, last, tz, datetime.now(UTC))


def ledger_path(named: str | None, allow_damage: bool = False) -> Path:
    """The ledger asked for. With --allow-damage stderr is told what is wrong with it."""
    from ledger.settings import Settings

    path = Settings.load().ledger_path if named is None else Path(named).expanduser()
    if allow_damage:
        from ledger.reader import connect

        try:
            connect(path, views=()).close()
        except DamagedLedger as damage:
            failed(f"what is damaged is left out, and figures may be too small: {damage}", 0)
    return path


def failed(message: str, status: int) -> int:
    """Say on stderr, in one line, what went wrong; the exit status."""
    from reports.render import harmless

    sys.stderr.write(f"bughive-costs: {harmless(' '.join(message.split()))}\n")
    return status
