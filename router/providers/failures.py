"""What every failure becomes, whoever it came from: a ProviderError. Pure.

an error status             failure_of_status     by the status, and by the words where it says too little
an error inside HTTP 200    failure_in_answer     by its own code, else as a 502
an error inside a stream    failure_in_stream     the same
a stream without its end    failure_to_stream
an HTTP 200 with no answer  failure_to_read
no reply, or half of one    failure_to_reach

How long to wait is told by a header, else by the body, as by the edge before a provider. What was said
is scrubbed before it is cut: of a key cut in two no half may stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from ledger.events import ErrorType, plain_text
from ledger.secrecy import scrubbed
from router.errors import ProviderError
from router.policy import retryable, wait_told
from router.providers.client import ToldError
from router.providers.wire import Answer, Reply, decoded, table

_SAID_BOUND = 20_000  # characters that are looked at; 500 are kept

_STATUS: Mapping[int, ErrorType] = {
    401: "authentication_failed",
    402: "insufficient_credits",
    403: "permission_denied",
    404: "not_found",
    408: "server_error",
    409: "server_error",
    410: "not_found",
    413: "request_too_large",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}
_CONTEXT = re.compile(
    r"prompt is too long|context[ _](length|window|limit)|maximum context|context_length_exceeded"
    r"|max(imum)? (input )?tokens.{0,20}exceed|input (is |length )?.{0,20}(too long|exceeds? the)"
    r"|too many (input |prompt )?tokens",
    re.IGNORECASE,
)
_CREDITS = re.compile(
    r"credit balance (is )?too low|insufficient[ _](credits|quota|funds)|(requires|need) more credits",
    re.IGNORECASE,
)
_SPEND_LIMIT = re.compile(
    r"spend(ing)?[ _]limit|key limit exceeded|usage limits?.{0,40}(reached|exceeded)"
    r"|reached your.{0,40}usage limits?",
    re.IGNORECASE,
)
_CONTENT = re.compile(
    r"content[ _](policy|filter|management)|moderation|flagged|guardrail|safety (system|policy)"
    r"|usage polic(y|ies)|violat(es|ed|ing) .{0,40}polic|content_filter|blocked by .{0,30}polic",
    re.IGNORECASE,
)


def status_of_code(code: Any) -> int | None:
    """The HTTP status an error inside an answer names, as a number or a string; None: it names none."""
    try:
        status = int(str(code))
    except ValueError:
        return None
    return status if 400 <= status <= 599 else None


def error_type_of(status: int, said: str) -> ErrorType:
    """The kind of failure of an error status, by the status and, where that is not enough, the words."""
    if status in (400, 403, 413, 422, 429) and (told := _told(status, said)):
        return told
    if status in _STATUS:
        return _STATUS[status]
    if status >= 500:
        return "server_error"
    return "invalid_request" if status >= 400 else "not_found"


def _told(status: int, said: str) -> ErrorType | None:
    if _SPEND_LIMIT.search(said):
        return "spend_limit_reached"
    if _CREDITS.search(said):
        return "insufficient_credits"
    if status == 429:
        return None
    if _CONTEXT.search(said):
        return "context_length_exceeded"
    return "content_filtered" if status in (400, 403) and _CONTENT.search(said) else None


def failure_of_status(provider: str, reply: Reply, said: str, request_id: str | None) -> ProviderError:
    """Why an error status came, told by the reply and the words in its body."""
    return _failure(
        provider,
        error_type_of(reply.status, said),
        _status_line(reply, said),
        reply,
        billing_rule="error_status",
        request_id=request_id,
    )


def failure_in_answer(
    provider: str, reply: Reply, code: Any, said: str, partial: Answer | None, request_id: str | None
) -> ProviderError:
    """An error that came inside HTTP 200: by its own code, else as a 502."""
    error_type = error_type_of(status_of_code(code) or 502, said)
    used = partial is not None and (any(partial.usage) or bool(partial.cost_usd))
    begun = partial is not None and bool(partial.content or partial.tool_calls)
    return _failure(
        provider,
        error_type,
        said or "an error without words inside HTTP 200",
        reply,
        billing_rule="answered_with_error" if used else "no_answer" if begun else "error_in_answer",
        request_id=request_id,
        partial=partial if used else None,
    )


def failure_in_stream(
    provider: str,
    head: Reply,
    told: ToldError,
    partial: Answer | None,
    request_id: str | None,
    has_usage: bool,
) -> ProviderError:
    """An error told inside a stream: by its own code, else as a 502. What had begun is not asked for again.

    `has_usage`: `partial` has all that was used.
    """
    error_type = error_type_of(status_of_code(told.code) or 502, told.said)
    rule = "answered_with_error" if has_usage else "no_answer" if partial else "error_in_answer"
    return _failure(
        provider,
        error_type,
        told.said or "an error without words inside a stream",
        head._replace(body=told.data),
        billing_rule=rule,
        request_id=request_id,
        partial=partial,
        may_retry=partial is None,
    )


def failure_to_stream(
    provider: str,
    head: Reply,
    error_type: ErrorType,
    why: str,
    partial: Answer | None,
    request_id: str | None,
    has_usage: bool,
) -> ProviderError:
    """A stream that broke off before its finish. `has_usage`: `partial` has all that was used."""
    return _failure(
        provider,
        error_type,
        why,
        head,
        billing_rule="answered_with_error" if has_usage else "no_answer",
        request_id=request_id,
        partial=partial,
        may_retry=partial is None,
    )


def failure_to_read(provider: str, reply: Reply, why: str, request_id: str | None) -> ProviderError:
    """An HTTP 200 whose body is no answer: it may have been billed."""
    return _failure(
        provider,
        "malformed_response",
        f"the answer cannot be read: {why}",
        reply,
        billing_rule="unreadable_answer",
        request_id=request_id,
    )


def failure_to_reach(provider: str, error_type: ErrorType, why: str, billing_rule: str) -> ProviderError:
    """No answer came at all, or not the whole of it."""
    return _failure(provider, error_type, why, None, billing_rule=billing_rule, request_id=None)


def _failure(
    provider: str,
    error_type: ErrorType,
    said: str,
    reply: Reply | None,
    *,
    billing_rule: str,
    request_id: str | None,
    partial: Answer | None = None,
    may_retry: bool = True,
) -> ProviderError:
    headers = reply.headers if reply else {}
    return ProviderError(
        plain_text(scrubbed(said[:_SAID_BOUND])).strip() or error_type,
        error_type=error_type,
        provider=provider,
        retryable=may_retry and retryable(error_type, headers),
        billing_rule=billing_rule,
        http_status=reply.status if reply and 100 <= reply.status <= 999 else None,
        retry_after_s=wait_told(headers) if reply is None else _wait_told(reply),
        provider_request_id=request_id,
        partial=replace(partial, provider_request_id=request_id) if partial else None,
    )


def _wait_told(reply: Reply) -> float | None:
    """Seconds to wait by the headers of a reply, else by its body."""
    told = wait_told(reply.headers)
    if told is not None or b"retry" not in reply.body[:_SAID_BOUND].lower():
        return told
    try:
        body = table(decoded(reply.body))
    except ValueError:
        return None
    error = table(body.get("error"))
    more = table(error.get("metadata"))
    said = {name.lower(): value for name, value in table(more.get("headers")).items()}
    for value in (body.get("retry_after"), error.get("retry_after"), said.get("retry-after")):
        if isinstance(value, str | int | Decimal) and (told := wait_told({"retry-after": f"{value!s:.40}"})):
            return told
    return None


def _status_line(reply: Reply, said: str) -> str:
    if 300 <= reply.status < 400:
        return f"HTTP {reply.status}: redirects are not followed; check base_url"
    return f"HTTP {reply.status}: {said}" if said else f"HTTP {reply.status}"
