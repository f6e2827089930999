"""Five weeks of crawls in a ledger: what a nightly page has to show, with failures and budgets.

python tests/nightly_month.py FOLDER      makes it; the same each time
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from played import ROUTES, History

from ledger.events import BudgetSet

LAST_DAY = date(2026, 11, 23)
DAYS = 35
_TASKS = {
    "plan_crawl_strategy": ("ORCHESTRATOR", 2, 900, 320),
    "validate_critical_bug": ("ORCHESTRATOR", 1, 1200, 260),
    "analyze_page": ("REASONING", 9, 5200, 700),
    "classify_bug": ("REASONING", 5, 1800, 220),
    "propose_fix": ("CODING", 3, 2600, 800),
    "analyze_stack_trace": ("CODING", 3, 3100, 420),
    "extract_forms": ("GENERAL", 8, 4300, 380),
    "parse_console_logs": ("GENERAL", 5, 2900, 240),
    "format_ticket": ("FAST", 6, 800, 350),
    "generate_title": ("FAST", 6, 400, 40),
}
_SITES = ("shop", "blog", "bank", "forum", "intranet", "travel")


def month_of_crawls(path: Path, days: int = DAYS, requests_a_day: int = 40, seed: int = 7) -> History:
    """A history of the days up to LAST_DAY, with a hard budget of the month and one that warns of a day."""
    chance = random.Random(seed)
    history = History(path)
    for number in range(days):
        day = LAST_DAY - timedelta(days=days - 1 - number)
        weekday = 0.35 if day.weekday() > 4 else 1.0
        count = int(requests_a_day * weekday * chance.uniform(0.75, 1.25))
        history.play("\n".join(_request(chance, day, which) for which in range(count)))
    history.record(
        BudgetSet(scope="month", mode="hard", limit_usd=Decimal(3)),
        BudgetSet(scope="day", mode="warn", limit_usd=Decimal("0.15")),
        BudgetSet(scope="tier", scope_id="ORCHESTRATOR", mode="hard", limit_usd=Decimal(4)),
    )
    return history


def _request(chance: random.Random, day: date, which: int) -> str:
    task = chance.choices(list(_TASKS), [weight for _, weight, _, _ in _TASKS.values()])[0]
    tier, _, prompt, answer = _TASKS[task]
    hour = min(max(chance.gauss(chance.choice((10.0, 15.5)), 2.2), 0.0), 23.9)
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=hour, seconds=which)
    site = chance.choice(_SITES)
    session = f"crawl-{site}-{day:%m%d}-{chance.randint(1, 2)}"
    tokens = (
        f"in={int(prompt * chance.uniform(0.5, 1.6))} out={int(answer * chance.uniform(0.4, 1.8))}"
        f" ms={chance.lognormvariate(_pace(tier), 0.45):.1f}"
    )
    header = f"session={session} task={task} at={moment:%Y-%m-%dT%H:%M:%S}"
    luck = chance.random()
    if luck < 0.04:
        return f"{header}\n    {tier}  503\n    {tier}  ok  {tokens}"
    if luck < 0.06:
        return f"{header}\n    {tier}  timeout  ceiling=0.0123\n    FAST  ok  {tokens}"
    if luck < 0.08:
        return f"{header}\n    {tier}  429\n    {tier}  429\n    {tier}  429"
    if luck < 0.09:
        return f"{header}\n    {tier}  ok  {tokens} list=none ceiling=0.02"
    return f"{header}\n    {tier}  ok  {tokens}"


def _pace(tier: str) -> float:
    """The logarithm of a typical answer's milliseconds."""
    return 7.0 + 0.35 * (len(ROUTES) - list(ROUTES).index(tier))


if __name__ == "__main__":
    month_of_crawls(Path(sys.argv[1])).close()
