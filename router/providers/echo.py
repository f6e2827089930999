"""What a provider echoes of a client's own key is hidden, before it is told on or recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ledger.secrecy import Secret, frameless
from router.errors import ProviderError
from router.providers.client import Dialect
from router.providers.wire import Answer, Reply

_RECORDED = (  # texts of an Answer that go on the books
    *("model", "id", "upstream_provider", "service_tier", "stop_reason", "provider_stop_reason"),
    *("usage_json", "usage_suspect", "provider_request_id"),
)


def read_without_key(key: Secret, provider: str, dialect: Dialect, reply: Reply) -> Answer | ProviderError:
    """What a reply says, without the key; a failure is returned as if raised by the caller.

    The frames of the reading hold the reply, which may echo the key: they do not travel with the failure.
    """
    try:
        return answer_without_key(key, dialect.read_reply(reply))
    except ProviderError as failure:
        told = failure
    except RecursionError:
        from router.providers.failures import failure_to_read

        return failure_to_read(provider, reply, "nested too deeply", None)
    hidden = key.hidden_in(text := reply.body.decode("latin-1"))
    headers = {name: key.hidden_in(value) for name, value in reply.headers.items()}
    if hidden is not text or headers != dict(reply.headers):
        try:
            dialect.read_reply(reply._replace(body=hidden.encode("latin-1"), headers=headers))
        except ProviderError as failure:
            told = failure
    return frameless(told)


def answer_without_key(key: Secret, answer: Answer) -> Answer:
    hidden: dict[str, Any] = {
        name: told
        for name in _RECORDED
        if (said := getattr(answer, name)) and (told := key.hidden_in(said)) is not said
    }
    return replace(answer, **hidden) if hidden else answer
