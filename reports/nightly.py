"""The night's report: seal, verify, read, and write a page with its figures beside it.

    nightly_figures   the ledger ─▶ one table of typed rows
    nightly_charts    rows ─▶ SVG                 nightly_page   rows, SVG ─▶ HTML
    nightly_files     rows ─▶ JSON, CSV, Parquet

The files of a day depend on the ledger, the day and the zone alone: who runs it again gets the same bytes.
"""

from __future__ import annotations

import json
import os
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ledger.errors import LedgerError
from reports.integrity import counted
from reports.nightly_figures import Night, read_night
from reports.options import UsageError, time_zone
from reports.render import harmless, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reports.nightly_page import Integrity

STEM = "bughive-costs"
_FIRST_YEAR = 1970


class Done(NamedTuple):
    """What was written, and whether all is well: the ledger sound and every hard budget kept."""

    summary: str  # one line
    is_well: bool
    files: list[Path]


def nightly(ledger: Path, day: date, out: Path, *, tz: str = "UTC", is_over: bool = True) -> Done:
    """Report on a day that begins and ends at midnight in `tz`; is_over: False while it is still today.

    Where the ledger is damaged the page is written all the same, and says so. Raises LedgerError where
    there is no ledger or one that a newer version has written, UsageError where `out` is no place to
    write to, or has that day's page of another ledger.
    """
    from ledger.reader import existing_ledger
    from reports.nightly_files import as_files
    from reports.nightly_page import page

    root = existing_ledger(ledger)
    folder = _place(out, root)
    integrity = _sealed_and_verified(root)
    _refuse_those_of_another(folder / f"{STEM}-{day}.json", integrity.ledger_id)
    night, integrity = _read(root, day, tz, integrity)
    contents = as_files(night, day, tz, integrity) | {"html": page(night, day, tz, integrity)}
    files = _write(folder, {f"{STEM}-{day}.{suffix}": content for suffix, content in contents.items()})
    summary = harmless("; ".join(_words(night, day, integrity, is_over, out / files[-1].name)))
    return Done(summary, integrity.is_sound and not _broken(night), files)


def day_of(text: str, tz: str, now: datetime) -> date:
    """The day that --date means: a date, today, or yesterday.

    Raises UsageError for what is no date, and for one that has not begun.
    """
    today = now.astimezone(time_zone(tz)).date()
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"--date {text!r} is no date ({error}); expected such as 2026-11-22, today or yesterday"
        ) from error
    if day > today:
        raise UsageError(f"--date {text} has not begun in {tz}, where today is {today}; name an earlier day")
    if day.year < _FIRST_YEAR:
        raise UsageError(f"--date {text} is before {_FIRST_YEAR}, and no ledger is so old; name a later day")
    return day


def _sealed_and_verified(root: Path) -> Integrity:
    """What could not be sealed is a problem to tell; what is not sound, too. Neither ends the night."""
    from ledger.ledger import Ledger
    from ledger.verify import verify
    from reports.nightly_page import Integrity

    problems = []
    try:
        with Ledger.open(root, auto_seal=False) as opened:
            opened.seal()
    except LedgerError as error:
        problems.append(f"It could not be sealed: {error}")
    found = verify(root)
    return Integrity(found.findings, problems, found.head.ledger_id)


def _read(root: Path, day: date, tz: str, integrity: Integrity) -> tuple[Night | None, Integrity]:
    """The figures, of a damaged ledger those that can be read; None where nothing can."""
    try:
        return read_night(root, day, tz=tz, allow_damage=bool(integrity.findings)), integrity
    except LedgerError as error:
        if integrity.is_sound:
            raise
        problem = f"Its figures cannot be read: {error}"
        return None, integrity._replace(problems=[*integrity.problems, problem])


def _place(out: Path, root: Path) -> Path:
    """The folder to write to, not made yet. Raises UsageError for a file, and for one in the ledger."""
    folder = Path(os.path.realpath(out))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"--out {out}: {there} is a file; name a folder")
    ledger = Path(os.path.realpath(root))
    if ledger in (folder, *folder.parents):
        raise UsageError(f"--out {out} is in the ledger, which holds nothing else; name another folder")
    return folder


def _refuse_those_of_another(file: Path, ledger_id: str) -> None:
    """Raise UsageError where the day's figures there are another ledger's: its page would be lost."""
    try:
        kept_id = json.loads(file.read_bytes())["ledger_id"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # none are there, or they do not say whose they are
    if kept_id and ledger_id and kept_id != ledger_id:
        raise UsageError(
            f"{file} is of another ledger, {kept_id}; remove it, or name another folder with --out"
        )


def _write(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    """Each file whole or not at all, private, the page last. Raises UsageError where that cannot be."""
    from ledger.files import make_private_folder, replace_file

    try:
        make_private_folder(folder)
        for name, content in contents.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise UsageError(
            f"--out {folder} cannot be written to: {error.strerror}; make room, or name another folder"
        ) from error
    return [folder / name for name in contents]


def _broken(night: Night | None) -> int:
    """How many hard budgets were not kept, the calls' own included."""
    if night is None:
        return 0
    return len(night.broken_budgets()) + (night.one("day").over_limit_requests or 0)


def _words(night: Night | None, day: date, integrity: Integrity, is_over: bool, page: Path) -> Iterator[str]:
    """The summary, part by part."""
    so_far = "" if is_over else " so far"
    if night is None:
        yield f"{day}{so_far}: no figures"
    else:
        total = night.one("day")
        asked = counted(total.requests or 0, "request")
        failed = f"{total.failed_attempts or 0:,} of {counted(total.attempts or 0, 'attempt')} failed"
        is_empty = not (total.requests or total.attempts)
        told = "nothing was asked" if is_empty else f"{shown(total.cost_usd, 'usd')} for {asked}, {failed}"
        yield f"{day}{so_far}: {told}"
    if broken := _broken(night):
        yield f"{counted(broken, 'hard budget')} broken"
    if integrity.findings:
        yield f"damaged: {counted(len(integrity.findings), 'finding')}"
    yield from (problem[:1].lower() + problem[1:] for problem in integrity.problems)
    yield str(page)
