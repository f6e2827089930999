"""budget, settle and prices on the command line: figures exact, refusals in a line, nothing changed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import answered_request, failed, gave_up, received, started

from ledger import price_books
from ledger.budgets import Budget, Hold
from ledger.errors import DamagedLedger, LedgerError, SettingsError
from ledger.events import RequestDenied
from ledger.ledger import Ledger
from ledger.prices import PriceBook
from ledger.reader import connect
from ledger.settings import OwnPrice
from ledger.verify import verify
from reports.budgets import budget_list
from reports.cli import main
from reports.prices import import_prices
from reports.render import write

D = Decimal


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger:
        answered_request(ledger, "r-1", billed_cost_usd=D("0.004"))
        log = ledger.begin(received("r-2"), started("r-2", reserved_usd=D("0.01")))
        log.append(failed(log, "r-2", billing="unknown", billing_rule="no_answer", reserved_usd=D("0.01")))
        log.append(started("r-2", 2, reserved_usd=None))
        log.append(failed(log, "r-2", 2, billing="unknown", billing_rule="no_answer"))
    return tmp_path / "ledger"


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    """What a command prints as JSON."""
    assert main([*words, "--format", "json"]) == status
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> str:
    """What a command says on stderr, in a line, having changed nothing."""
    before = events(path)
    assert main([*words, "--ledger", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert events(path) == before
    return captured.err


def events(path: Path) -> int:
    with connect(path, views=("events",)) as connection:
        return connection.execute("select count(*) from events where event_type like '%set%'").fetchone()[0]  # type: ignore[index]


def test_a_budget_is_set_listed_checked_and_lifted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--ledger", str(path))
    said(capsys, "budget", "set", "0.02", "--scope", "day", "--tz", "Asia/Kolkata", *at)
    [row] = said(capsys, "budget", "list", *at)
    assert row["spent_usd"] == "0.004000000000"
    assert (row["limit_usd"], row["in_doubt_usd"], row["left_usd"]) == (
        "0.020000000000",
        "0.010000000000",
        "0.006000000000",
    )
    assert (row["tz"], row["exceeded"], row["unbounded_attempts"]) == ("Asia/Kolkata", False, 1)
    assert row["gone_at"] is not None
    said(capsys, "budget", "check", *at)
    said(capsys, "budget", "set", "0.014", "--scope", "session", *at)
    assert [row["exceeded"] for row in said(capsys, "budget", "check", *at, status=1)] == [True, False]
    assert len(said(capsys, "budget", "check", "--session", "s-1", *at, status=1)) == 2
    assert main(["budget", "check", "--session", "s-9", *at]) == 1
    assert "no session has the id s-9" in capsys.readouterr().err
    said(capsys, "budget", "set", "none", "--scope", "session", *at)
    assert [row["scope"] for row in said(capsys, "budget", "list", *at)] == ["day"]


def test_for_people_a_budget_of_each_session_is_told_from_that_of_one(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--ledger", str(path))
    assert main(["budget", "list", *at]) == 0
    assert "for one: bughive-costs budget set 25 --scope day" in capsys.readouterr().out

    said(capsys, "budget", "set", "5", "--scope", "session", *at)
    said(capsys, "budget", "set", "5", "--scope", "session", "--id", "s-1", *at)
    assert {row["scope"] for row in said(capsys, "budget", "list", *at)} == {"session"}
    assert main(["budget", "list", *at]) == 0
    title, _, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "Budgets"
    assert sorted(row.split("s-1")[0].strip() for row in rows) == ["each session", "session"]


def test_a_request_that_had_ended_when_a_budget_was_set_is_not_judged_by_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--ledger", str(path))
    costs = {"billed_cost_usd": D("0.004")}
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        log = ledger.begin(received("r-open"), started("r-open"))
        log.append(failed(log, "r-open", billing="billed", billing_rule="in_stream", **costs))
        [row] = said(capsys, "budget", "set", "0.001", "--scope", "request", *at)
        assert (row["scope_id"], row["exceeded"]) == ("r-open", True)
        log.append(gave_up(log, "r-open"))

    [row] = said(capsys, "budget", "check", *at)
    assert (row["is_each"], row["scope_id"], row["spent_usd"]) == (True, None, "0.000000000000")

    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        answered_request(ledger, "r-after", **costs)
    [row] = said(capsys, "budget", "check", *at, status=1)
    assert row["scope_id"] == "r-after"
    [row] = said(capsys, "budget", "set", "5", "--scope", "request", *at)
    assert row["scope_id"] is None
    [row] = said(capsys, "budget", "set", "5", "--scope", "request", "--id", "r-after", *at)[1:]
    assert (row["spent_usd"], row["gone_at"]) == ("0.004000000000", None)


@pytest.mark.parametrize("command", ["list", "check"])
def test_what_bughive_toml_says_and_is_not_in_force_yet_is_told(
    path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = ("budget", command, "--ledger", str(path))
    file = Path("bughive.toml")
    entry = '[[budgets]]\nscope = "{}"\nlimit_usd = {}\n'

    def told() -> str:
        """What is said beside the list, by a reader that writes nothing."""
        before = events(path)
        assert main([*words]) == 0
        assert events(path) == before
        return capsys.readouterr().err

    file.write_text(entry.format("month", "4") + entry.format("session", "2.5"))
    where, when = (
        f"but in {file.absolute()}: ",
        "; that is in force once a program opens the ledger to write\n",
    )
    month, session = "the hard budget of the month", "the hard budget of each session"
    assert (
        told()
        == f"bughive-costs: not in force yet, {where}{month} is set to $4, {session} is set to $2.5{when}"
    )

    Ledger.open(path, "process-crash", auto_seal=False).close()
    assert told() == ""

    file.write_text(entry.format("month", "5"))
    assert (
        told() == f"bughive-costs: not in force yet, {where}{month} is set to $5, {session} is lifted{when}"
    )

    file.write_text(entry.format("week", "5"))
    assert "bughive.toml, line 1: scope must be request," in refused(capsys, path, *words[:2])


def test_for_people_a_budget_of_each_shows_those_that_have_the_least_left(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--ledger", str(path))
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        for number in range(2, 26):
            cost_usd = D(number) / 1000
            answered_request(ledger, f"r-s-{number}", session_id=f"s-{number}", billed_cost_usd=cost_usd)

    assert len(said(capsys, "budget", "set", "1", "--scope", "session", *at)) == 25
    for limit, note in (
        ("1", "5 more of each session, none of them exceeded: --format csv lists all"),
        ("0.004", "23 of 25 exceeded; 5 more of each session, 3 of them exceeded: --format csv lists all"),
    ):
        assert main(["budget", "set", limit, "--scope", "session", *at]) == 0
        _, _, _, *rows, _, last = capsys.readouterr().out.splitlines()
        assert (len(rows), rows[0].split()[2], last) == (20, "s-25", note)


def test_a_day_is_named_with_the_zone_it_is_of_and_a_moment_with_its_own(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        ledger.set_budget(Budget("day", None, D("5"), tz="Pacific/Kiritimati"))
        ledger.set_budget(Budget("month", None, D("5")))
    now = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)  # there it is December, as it is 14 hours later
    write(budget_list(path, now=now), "markdown", sys.stdout)
    title, _, heads, _, day, month = capsys.readouterr().out.splitlines()
    assert (title, heads.endswith("| Gone by (UTC) |")) == ("# Budgets", True)
    assert day.startswith("| day in Pacific/Kiritimati | 2026-12-01 |")
    assert month.startswith("| month in UTC | 2026-11 |")
    assert [row["scope_id"] for row in budget_list(path, now=now).rows] == ["2026-12-01", "2026-11"]


def test_a_budget_that_is_used_up_says_so_and_names_no_moment(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--ledger", str(path))
    [row] = said(capsys, "budget", "set", "0.004", "--scope", "all", *at)
    assert (row["exceeded"], row["gone_at"]) == (True, None)
    assert main(["budget", "list", *at]) == 0
    assert capsys.readouterr().out.splitlines()[3].endswith("  used up")


def test_a_time_zone_is_known_in_any_case_and_kept_by_its_name(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("budget", "set", "5", "--scope", "day", "--tz", "europe/berlin")
    [row] = said(capsys, *words, "--ledger", str(path))
    assert row["tz"] == "Europe/Berlin"


def test_when_a_budget_is_gone_follows_from_the_rate_since_its_first_attempt(path: Path) -> None:
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        ledger.set_budget(Budget("all", None, D("0.018")))
    with connect(path, views=("events", "attempts")) as connection:
        since = connection.execute("select min(started_at) from attempts").fetchone()[0]  # type: ignore[index]
    now = since.astimezone(UTC) + timedelta(hours=2)
    [row] = budget_list(path, now=now).rows  # 0.004 in two hours: the other 0.004 are gone in as many
    gone = datetime.fromisoformat(row["gone_at"])
    assert abs(gone - (now + timedelta(hours=2))) < timedelta(seconds=2)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("5", "--scope", "sesion"), "did you mean session?"),
        (("5.0000000000001", "--scope", "all"), "a limit has at most 12 decimals"),
        (("NaN", "--scope", "all"), "not 'NaN'"),
        (("5", "--scope", "tier", "--id", "FASTT"), "there is no tier 'FASTT'; did you mean FAST?"),
        (
            ("5", "--scope", "day", "--tz", "Mars/Base"),
            "there is no time zone 'Mars/Base'; expected such as Europe/Berlin",
        ),
        (("5", "--scope", "day", "--mode", "soft"), "mode must be hard or warn"),
        (("none", "--scope", "month"), "there is no hard budget of the month"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refused(capsys, path, "budget", "set", *words)


def test_a_ledger_that_is_made_by_setting_a_budget_is_told_of_with_its_path(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str, status: int = 0) -> str:
        assert main(["budget", "set", *words]) == status
        return capsys.readouterr().err

    there, mistyped = str(path), "ledgr"
    assert told("5", "--scope", "month", "--ledger", there) == ""
    assert "there is no ledger at ledgr" in told("none", "--scope", "day", "--ledger", mistyped, status=2)
    assert not Path(mistyped).exists()
    note = f"bughive-costs: there was no ledger at ledgr: a new one is made in {Path(mistyped).absolute()}\n"
    assert told("5", "--scope", "month", "--ledger", mistyped) == note
    assert told("5", "--scope", "month", "--ledger", mistyped) == ""


@pytest.mark.parametrize(
    ("scope", "name", "note"),
    [
        (
            "model",
            "deepseek/deepseek-chatt",
            "no model 'deepseek/deepseek-chatt' is on the books or in the price book so far;"
            " did you mean deepseek/deepseek-chat",
        ),
        ("model", "own/modl", "did you mean own/model?"),
        (
            "model",
            "anthropic/claude-opus-4-5-20250514",
            "counts for claude-opus-4-5-20251101: set it on that",
        ),
        ("model", "acme", "no model 'acme' is on the books or in the price book so far"),
        ("model", "own/model", ""),
        ("model", "qwen/qwen-2.5-32b-instruct", ""),
        ("task", "analyse_page", "no task 'analyse_page' is on the books so far; did you mean analyze_page?"),
        ("task", "foo", "no task 'foo' is on the books so far"),
        ("task", "analyze_page", ""),
        ("session", "s-7", ""),
    ],
)
def test_a_budget_of_a_name_that_nothing_knows_is_set_and_says_so(
    path: Path, capsys: pytest.CaptureFixture[str], scope: str, name: str, note: str
) -> None:
    tier = '[tiers.OWN]\nmodel = "own/model"\nprovider = "openrouter"\n'
    Path("bughive.toml").write_text(tier)
    assert main(["budget", "set", "5", "--scope", scope, "--id", name, "--ledger", str(path)]) == 0
    told = capsys.readouterr()
    assert name in told.out
    assert (note in told.err, told.err.count("\n")) == (True, int(bool(note)))


def test_a_refusal_is_explained_number_by_number(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        ledger.set_budget(Budget("session", "s-1", D("0.015")))
        log = ledger.open_request(received("r-9"))
        hold = Hold("r-9-a1", "r-9", "s-1", "analyze_page", "REASONING", "m", D("0.003"))
        with pytest.raises(Exception, match="budget of session s-1 exceeded") as error:
            log.reserve(hold)
        of = {"request_id": "r-9", "session_id": "s-1", "task": "analyze_page", "requested_tier": "REASONING"}
        route = {"tier": "REASONING", "provider": "openrouter", "model": "m", "attempt_number": 0}
        end = {"started_at": ledger.now(), "reason": "budget_exceeded", "error_message": str(error.value)}
        log.append(RequestDenied(**of, **route, **end, **error.value.facts()))  # type: ignore[attr-defined]
    row = said(capsys, "budget", "explain", "r-9", "--ledger", str(path))
    assert (row["limit_usd"], row["spent_usd"], row["in_doubt_usd"]) == (
        "0.015000000000",
        "0.004000000000",
        "0.010000000000",
    )
    assert (row["asked_usd"], row["over_usd"]) == ("0.003000000000", "0.002000000000")
    assert main(["budget", "explain", "r-9", "--ledger", str(path)]) == 0
    assert "Too much by" in capsys.readouterr().out
    assert "request r-1 was not refused" in refused(capsys, path, "budget", "explain", "r-1")


def test_attempts_in_doubt_are_settled_one_or_all(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--ledger", str(path))
    for words in (("--as", "billed"), ("--as", "billed", "x", "r-2-a1"), ("--as", "free", "r-2-a1")):
        refused(capsys, path, "settle", *words)
    assert "--before '2026-13-01' is no date" in refused(
        capsys, path, "settle", "--as", "unbilled", "--before", "2026-13-01"
    )
    assert "say what was found out: --as unbilled, or --as billed" in refused(
        capsys, path, "settle", "r-2-a1"
    )
    assert "name one attempt, or --before" in refused(capsys, path, "settle", "--as", "unbilled")
    [row] = said(capsys, "settle", "--as", "billed", "0.0042", "r-2-a1", "--reason", "the invoice", *at)
    assert (row["attempt_id"], row["billing"], row["billed_cost_usd"]) == (
        "r-2-a1",
        "billed",
        "0.004200000000",
    )
    assert "is not in doubt" in refused(capsys, path, "settle", "--as", "unbilled", "r-2-a1")
    assert main(["settle", "--as", "unbilled", "--before", "2100-01-01", *at]) == 0
    heads, row, _, note = capsys.readouterr().out.splitlines()
    assert ("Started (UTC)" in heads, row.split()[0], note) == (True, "r-2-a2", "settled 1 attempt")
    with connect(path) as connection:
        assert connection.execute("select count(*) from in_doubt").fetchone() == (0,)
        assert connection.execute("select sum(cost_usd) from attempts").fetchone() == (D("0.0082"),)


@pytest.mark.parametrize(
    "words",
    [
        ("settle", "--as", "unbilled"),
        ("settle", "--as", "unbilled", "no-such-attempt"),
        ("budget", "explain", "no-such-request"),
    ],
)
def test_what_a_refusal_says_to_look_at_can_be_typed_as_it_stands(
    path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    told = re.search(r"see bughive-costs (.*)$", refused(capsys, path, *words))
    assert told is not None
    assert main([*shlex.split(told[1]), "--ledger", str(path)]) == 0
    assert "_id" in capsys.readouterr().out


@pytest.mark.parametrize("amount", ["-3", "-.5", "-$3", "-1,000.50", "-1e3"])
@pytest.mark.parametrize(
    "words",
    [
        ("budget", "set", "{}", "--scope", "day"),
        ("budget", "set", "--scope", "day", "--", "{}"),
        ("settle", "--as", "billed", "{}", "r-2-a1"),
    ],
)
def test_an_amount_below_nothing_is_no_option_that_is_missing(
    path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], amount: str
) -> None:
    complaint = main([word.format(amount) for word in words]), capsys.readouterr().err
    assert complaint == (
        2,
        f"bughive-costs: an amount of USD is from 0 to below 1,000,000, not {amount}\n",
    )


def test_what_an_option_is_given_may_look_like_an_amount_below_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("settle", "--as", "unbilled", "r-2-a1", "--reason", "-3")
    [row] = said(capsys, *words, "--ledger", str(path))
    assert row["attempt_id"] == "r-2-a1"


# prices


def test_prices_are_listed_with_their_source_and_what_has_none_with_its_tokens(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        log = ledger.begin(received("r-7"), started("r-7", model="own/model"))
        log.append(failed(log, "r-7", model="own/model", input_tokens=70, output_tokens=7))
    told = said(capsys, "prices", "list", "--ledger", str(path))
    opus = told["prices"][0]
    assert (opus["model"], opus["input"], opus["checked"]) == ("claude-opus-4-5-20251101", "15", "2026-11-22")
    assert opus["source"].startswith("BugHive's own table")
    assert told["unpriced"] == [
        {
            "provider": "openrouter",
            "model": "own/model",
            "attempts": 1,
            "input_tokens": 70,
            "output_tokens": 7,
        }
    ]
    assert said(capsys, "prices", "list", "--at", "2024-01-01", "--ledger", str(path))["prices"] == []


def test_a_book_that_was_used_is_found_by_its_hash_whatever_the_prices_are_now(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = PriceBook.load().hash
    Path("bughive.toml").write_text(
        '[[prices]]\nprovider = "openrouter"\nmodel = "own/model"\nfrom = 2026-01-01\ninput = 1.25\n'
        "service_tiers = { batch = { input = 0.5, long_context = [{ above_tokens = 9, input = 0.75 }] } }\n"
        "long_context = [{ above_tokens = 200_000, input = 2 }]\nuntil = 2030-01-01\ndated_suffix = true\n"
    )
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        new = ledger.prices.hash
    assert price_books.hashes(path) == sorted((old, new))
    assert price_books.kept(path, new).hash == new
    models = [
        row["model"] for row in said(capsys, "prices", "list", "--book", old, "--ledger", str(path))["prices"]
    ]
    assert "own/model" not in models
    assert "there are" in refused(capsys, path, "prices", "list", "--book", "00")
    assert verify(path).findings == []
    file = path / "price_books" / f"{old}.json"
    file.write_text(file.read_text().replace('"input": "15"', '"input": "14"'))
    with pytest.raises(DamagedLedger, match="it was altered"):
        price_books.kept(path, old)
    assert [finding.file for finding in verify(path).findings] == [f"price_books/{old}.json"]


def own(model: str, since: str, **fields: Any) -> OwnPrice:
    day = datetime.fromisoformat(since).date()
    return OwnPrice("here", {"provider": "openrouter", "model": model, "from": day, "input": 1, **fields})


def test_an_id_with_a_date_matches_where_that_is_declared_and_only_then() -> None:
    noon = datetime(2026, 11, 22, tzinfo=UTC)
    book = PriceBook.load([own("a", "2026-01-01", dated_suffix=True), own("b", "2026-01-01")])
    assert book.at("openrouter", "a-20261101", noon) is book.at("openrouter", "a", noon) is not None
    for name in ("b-20261101", "a-2026", "a-20261101-x", "a-latest", "A-20261101"):
        assert book.at("openrouter", name, noon) is None


def test_a_price_ends_where_it_says() -> None:
    until = datetime(2026, 6, 1, tzinfo=UTC)
    book = PriceBook.load([own("a", "2026-01-01", until=until.date())])
    assert book.at("openrouter", "a", until - timedelta(seconds=1)) is not None
    assert book.at("openrouter", "a", until) is None


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (
            [own("a", "2026-01-01", until=datetime(2026, 6, 2, tzinfo=UTC).date()), own("a", "2026-06-01")],
            "from 2026-06-01 begins before the one from 2026-01-01 ends, on 2026-06-02",
        ),
        ([own("a", "2026-01-01", aliases=["b"]), own("b", "2026-01-01")], "b is claimed by a and b"),
        (
            [own("a", "2026-02-01", until=datetime(2026, 1, 1, tzinfo=UTC).date())],
            "until must be a date after",
        ),
        ([own("a", "2026-02-01", dated_suffix="yes")], "dated_suffix must be true or false"),
    ],
)
def test_periods_that_overlap_and_ids_that_two_claim_are_refused(entries: Any, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        PriceBook.load(entries)


def test_published_prices_are_compared_and_taken_over(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("genai_prices")
    at = ("--ledger", str(path))
    told = said(capsys, "prices", "diff", *at)
    differs = {(row["model"], row["unit"]): row for row in told["differences"]}
    opus = differs["claude-opus-4-5-20251101", "input"]
    assert (opus["ours_usd"], opus["theirs_usd"], opus["difference_usd"]) == ("15", "5", "-10")
    [cost] = told["last_30_days"]
    assert (cost["model"], cost["attempts"], cost["ours_usd"]) == (
        "deepseek/deepseek-chat",
        1,
        "0.000490000000",
    )
    assert (
        D(cost["theirs_usd"])
        == (
            1000 * D(differs["deepseek/deepseek-chat", "input"]["theirs_usd"])
            + 200 * D(differs["deepseek/deepseek-chat", "output"]["theirs_usd"])
        )
        / 10**6
    )
    assert main(["prices", "import", "claude-opus-4-5-20251101"]) == 0
    assert capsys.readouterr().out.startswith("claude-opus-4-5-20251101: now in")
    before = Path("bughive.toml").read_text()
    assert "input = 5\n" in before
    told = said(capsys, "prices", "diff", *at)
    assert "claude-opus-4-5-20251101" not in {row["model"] for row in told["differences"]}
    assert main(["prices", "import", "claude-opus-4-5-20251101"]) == 2
    assert main(["prices", "import", "nothing-like-it"]) == 2
    assert Path("bughive.toml").read_text() == before
    nowhere = Path("/proc/bughive.toml")
    with pytest.raises(LedgerError, match=f"{nowhere} cannot be written: .*; see the permissions of /proc$"):
        import_prices((), file=nowhere, now=datetime(2100, 1, 1, tzinfo=UTC))
