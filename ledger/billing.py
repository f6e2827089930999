"""Who pays for an attempt: the verdicts on the books, and the rule that decides each. Data.

billed      certainly spent: what the provider reported, else the list cost; else unpriced
unbilled    certainly not spent
unknown     in doubt: it may have been billed, with the ceiling beside it as the most it can be
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ledger.events import Billing


class BillingRule(NamedTuple):
    """One verdict; `billing` None: a later word decides, and says which it is."""

    billing: Billing | None
    when: str


BILLING_RULES: Mapping[str, BillingRule] = {
    "answered": BillingRule("billed", "an answer came; a refusal inside HTTP 200 is one"),
    "answered_with_error": BillingRule(
        "billed", "an error came inside HTTP 200, with the tokens or the cost it had used by then"
    ),
    "error_status": BillingRule("unbilled", "any HTTP status but 2xx: errors are not billed"),
    "error_in_answer": BillingRule("unbilled", "HTTP 200 with an error inside that reports no use"),
    "never_sent": BillingRule(
        "unbilled", "no connection was made, or the ledger could not record it before it was sent"
    ),
    "no_answer": BillingRule(
        "unknown", "sent, and no whole answer came: silence, a broken connection, or the caller left"
    ),
    "unreadable_answer": BillingRule(
        "unknown", "HTTP 200 whose body cannot be read, or what came was no HTTP"
    ),
    "abandoned": BillingRule("unknown", "sent, and the process died before an outcome was recorded"),
    "settled": BillingRule(None, "what somebody found out later, as attempt_settled says"),
}


def billing_by(rule: str) -> Billing:
    """The verdict a rule gives on an attempt that ends by it."""
    billing = BILLING_RULES[rule].billing
    assert billing is not None, f"{rule} gives no verdict by itself"
    return billing
