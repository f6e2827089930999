"""Setting budgets: each change is an event, and holds for every attempt that begins after it, in any process.

set_budget(ledger, budget)     by command or program
keep_to_file(ledger, …)        as bughive.toml says, whenever the ledger is opened
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.budgets import Budget, budget_of
from ledger.errors import LedgerError, SettingsError, nearest
from ledger.events import BudgetSet
from ledger.schema import TIER_ORDER

if TYPE_CHECKING:
    from ledger.ledger import Ledger
    from ledger.settings import OwnBudget


def set_budget(ledger: Ledger, budget: Budget) -> None:
    """Record that a budget is set, or set anew.

    Raises LedgerError where a file sets it, its last change is of a later moment than the clock's, or it
    cannot be recorded.
    """
    _refuse_if_a_file_sets(ledger, budget)
    _record(ledger, budget, budget)


def lift_budget(ledger: Ledger, budget: Budget) -> None:
    """Record that the budget of that scope, id and mode is lifted. Raises LedgerError as set_budget, and
    where there is none."""
    if all(known.key != budget.key for known in ledger.budgets().all):
        raise LedgerError(f"there is no {budget}; see bughive-costs budget list")
    _refuse_if_a_file_sets(ledger, budget)
    _record(ledger, budget, None)


def budgets_of(own: Sequence[OwnBudget], tiers: Iterable[str] = ()) -> list[Budget]:
    """The budgets that a file sets. Raises SettingsError naming file and line."""
    budgets: dict[tuple[str, str, str], Budget] = {}
    for where, entry in own:
        given = {name: entry.get(name) for name in ("scope", "id", "mode", "tz")}
        for name, value in given.items():
            if not (isinstance(value, str) or (value is None and name != "scope")):
                raise SettingsError(f"{where}: {name} must be a text in quotes, not {value!r}")
        budget = budget_of(
            given["scope"],  # type: ignore[arg-type]  # a text, as was just seen
            given["id"],
            entry.get("limit_usd"),
            given["mode"] or "hard",
            given["tz"] or "UTC",
            where=where,
        )
        refuse_unknown_tier(budget, tiers, f"{where}: ")
        if budget.key in budgets:
            raise SettingsError(f"{where}: the {budget} is set twice; keep one")
        budgets[budget.key] = budget
    return list(budgets.values())


def refuse_unknown_tier(budget: Budget, tiers: Iterable[str], where: str = "") -> None:
    """Raise SettingsError for a budget of a tier that there is not: it would never hold for anything."""
    known = [*dict.fromkeys((*TIER_ORDER, "DIRECT", *tiers))]
    if budget.scope == "tier" and budget.scope_id is not None and budget.scope_id not in known:
        near = nearest(budget.scope_id, known)
        raise SettingsError(f"{where}there is no tier {budget.scope_id!r}{near}; expected {', '.join(known)}")


def keep_to_file(ledger: Ledger, file: Path, budgets: Sequence[Budget]) -> None:
    """Set what a file says and lift what it says no longer; nothing where that is so already."""
    for budget, wanted in changes_by(file, budgets, ledger.budgets().all):
        _record(ledger, budget, wanted)


def changes_by(
    file: Path, budgets: Sequence[Budget], in_force: Iterable[Budget]
) -> list[tuple[Budget, Budget | None]]:
    """The budgets that a file changes, each with what it is to be; None: lifted, as it says so no longer."""
    place = str(file)
    known = {budget.key: budget for budget in in_force}
    said = {budget.key: budget._replace(reason=place) for budget in budgets}
    lifted = [budget for key, budget in known.items() if budget.reason == place and key not in said]
    return [
        *((budget, budget) for key, budget in said.items() if known.get(key) != budget),
        *((budget, None) for budget in lifted),
    ]


def _refuse_if_a_file_sets(ledger: Ledger, budget: Budget) -> None:
    for known in ledger.budgets().all:
        if known.key == budget.key and _is_file(known.reason):
            raise LedgerError(f"the {budget} is set in {known.reason}; change it there")


def _is_file(reason: str | None) -> bool:
    return reason is not None and reason.endswith("bughive.toml")


def _record(ledger: Ledger, budget: Budget, wanted: Budget | None) -> None:
    event = BudgetSet(
        scope=budget.scope,
        scope_id=budget.scope_id,
        mode=budget.mode,
        tz=budget.tz if wanted and budget.tz != "UTC" else None,
        limit_usd=wanted and wanted.limit_usd,
        reason=budget.reason,
    )
    set_at = ledger.read_state(lambda state: state.budget_set_at(budget))
    if set_at is not None and set_at >= ledger.now().isoformat(timespec="microseconds"):
        raise LedgerError(
            f"the {budget} was last changed at {set_at}, and it is {ledger.now()}; set the clock"
        )
    ledger.record(event)
    ledger.apply_living()
    found = {known.key: known for known in ledger.read_state(lambda state: state.budgets()).all}
    if found.get(budget.key) != wanted:
        raise LedgerError(
            f"the {budget} is recorded, and another change of it came at the same time; see the list"
        )
