"""What answers and failures become, however strange they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.events import AttemptFailed, AttemptSucceeded
from ledger.prices import PriceBook, Usage
from ledger.secrecy import scrubbed
from router import books
from router.catalog import Route
from router.errors import InvalidRequest, ProviderError
from router.providers import anthropic, openrouter
from router.providers.failures import error_type_of
from router.providers.wire import Answer, Reply, compact, decoded, encoded, name, plain

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
BOOK = PriceBook.load()


def chat(usage: Any = None, **choice: Any) -> Reply:
    """A completion as OpenRouter sends it."""
    message = {"role": "assistant", "content": "ok", **choice.pop("message", {})}
    body = {
        "id": "gen-1",
        "model": "m",
        "choices": [{"finish_reason": "stop", "message": message, **choice}],
        **({"usage": usage} if usage is not None else {}),
    }
    return Reply(200, {}, json.dumps(body).encode())


def chat_usage(usage: str) -> Answer:
    """The answer whose usage is spelt so."""
    body = '{"id":"g","model":"m","choices":[{"message":{"content":"ok"}}],"usage":' + usage + "}"
    return openrouter.read_reply(Reply(200, {}, body.encode()))


def claude(usage: Any) -> Answer:
    body = {"type": "message", "id": "msg_1", "model": "c", "content": [], "stop_reason": "end_turn"}
    return anthropic.read_reply(Reply(200, {}, json.dumps({**body, "usage": usage}).encode()))


# Numbers


def test_cached_tokens_are_counted_once() -> None:
    answer = chat_usage(
        '{"prompt_tokens":1000,"completion_tokens":10,'
        '"prompt_tokens_details":{"cached_tokens":600,"cache_write_tokens":100}}'
    )

    assert answer.usage == Usage(300, 600, 100, 0, 10)
    assert answer.usage.prompt_tokens == 1000
    assert answer.usage_suspect is None


@pytest.mark.parametrize(
    ("usage", "read", "why"),
    [
        (
            '{"prompt_tokens":750,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":900}}',
            Usage(0, 900, 0, 0, 1),
            "cached_tokens (900) + cache_write_tokens (0) exceed prompt_tokens (750)",
        ),
        (
            '{"prompt_tokens":-5,"completion_tokens":1}',
            Usage(output_tokens=1),
            "prompt_tokens is -5, taken as 0",
        ),
        ('{"prompt_tokens":NaN,"completion_tokens":1}', Usage(output_tokens=1), "prompt_tokens is NaN"),
        (
            '{"prompt_tokens":7.5,"completion_tokens":1}',
            Usage(7, 0, 0, 0, 1),
            "prompt_tokens is 7.5, taken as 7",
        ),
        (
            '{"prompt_tokens":"7","completion_tokens":1}',
            Usage(output_tokens=1),
            'prompt_tokens is "7", not a number',
        ),
        ('{"prompt_tokens":1}', Usage(1), "completion_tokens is not reported"),
        (
            '{"prompt_tokens":1e999,"completion_tokens":1}',
            Usage(2**53, 0, 0, 0, 1),
            "prompt_tokens is 1E+999",
        ),
        (
            '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":22,'
            '"completion_tokens_details":{"reasoning_tokens":7}}',
            Usage(10, 0, 0, 0, 12, 7),
            "reasoning_tokens (7) are counted beside completion_tokens (5)",
        ),
        (
            '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":99}',
            Usage(10, 0, 0, 0, 5),
            "total_tokens (99)",
        ),
    ],
)
def test_numbers_that_cannot_be_right_are_kept_bounded_and_said(usage: str, read: Usage, why: str) -> None:
    answer = chat_usage(usage)

    assert answer.content == "ok"
    assert answer.usage == read
    assert why in (answer.usage_suspect or "")


def test_an_answer_without_usage_has_no_list_cost_rather_than_none_at_all() -> None:
    answer = openrouter.read_reply(chat())
    route = Route("REASONING", "deepseek/deepseek-chat", "openrouter")
    prices = BOOK.at(route.provider, route.model, NOW)

    assert answer.usage_known is False
    assert answer.usage_json is None
    assert books.cost_of(answer, route, prices, BOOK, NOW) == books.Cost(None, None)


@pytest.mark.parametrize(
    ("spelt", "billed"),
    [
        ("4e-05", Decimal("0.00004")),
        ("0.000057080000000001", Decimal("0.000057080000")),
        ("0.1", Decimal("0.1")),
        ("0", Decimal(0)),
        ("2", Decimal(2)),
        ("-0.1", None),
        ("NaN", None),
        ("Infinity", None),
        ("1e30", None),
        ('"free"', None),
        ("true", None),
        ("null", None),
    ],
)
def test_a_cost_is_taken_as_it_is_spelt_or_not_at_all(spelt: str, billed: Decimal | None) -> None:
    answer = chat_usage(f'{{"prompt_tokens":1,"completion_tokens":1,"cost":{spelt}}}')

    assert answer.cost_usd == billed
    assert (answer.usage_suspect is None) == (billed is not None or spelt == "null")


def test_the_upstreams_price_counts_only_with_ones_own_key() -> None:
    usage = '{{"prompt_tokens":1,"completion_tokens":1,"cost":0.01,"is_byok":{},"cost_details":{}}}'
    details = '{"upstream_inference_cost":0.00417}'

    assert chat_usage(usage.format("true", details)).cost_usd == Decimal("0.01417")
    assert chat_usage(usage.format("false", details)).cost_usd == Decimal("0.01")
    assert chat_usage(usage.format("true", "null")).cost_usd is None


def test_usage_is_kept_verbatim_even_where_a_tool_speaks_of_usage_too() -> None:
    usage = '{"input_tokens": 3,  "output_tokens": 4.0e0}'
    body = (
        '{"content":[{"type":"tool_use","id":"t","name":"n","input":{"usage":{"cost":1.5}}}],"usage":'
        + usage
        + ',"after":{"usage":{}}}'
    )
    answer = anthropic.read_reply(Reply(200, {}, body.encode()))

    assert json.loads(answer.usage_json or "") == {"input_tokens": 3, "output_tokens": 4.0}
    assert answer.tool_calls[0]["input"] == {"usage": {"cost": 1.5}}
    assert type(answer.tool_calls[0]["input"]["usage"]["cost"]) is float


def test_what_looks_like_a_key_is_not_kept_even_in_a_usage() -> None:
    answer = chat_usage('{"prompt_tokens": "sk-or-v1-0123456789abcdef", "completion_tokens": 1}')

    assert answer.usage_json == '{"prompt_tokens": "[key]", "completion_tokens": 1}'
    assert "0123456789abcdef" not in (answer.usage_suspect or "")


@pytest.mark.parametrize("by_age", [{}, {"cache_creation": None}])
def test_older_answers_do_not_break_cache_writes_down_and_are_said_not_to(by_age: dict[str, Any]) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 100, **by_age}
    answer = claude(usage)

    assert answer.usage.cache_write_5m_tokens == 100
    assert "cache_creation_input_tokens (100) exceed 5m + 1h (0)" in (answer.usage_suspect or "")
    assert answer.usage_known


def test_cache_writes_beyond_their_breakdown_are_5m_writes_and_said_to_be() -> None:
    answer = claude(
        {
            "input_tokens": 1,
            "output_tokens": 1,
            "cache_creation_input_tokens": 100,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 50},
        }
    )

    assert (answer.usage.cache_write_5m_tokens, answer.usage.cache_write_1h_tokens) == (50, 50)
    assert "the rest is taken as 5m" in (answer.usage_suspect or "")


def test_each_pass_is_priced_at_the_model_that_made_it() -> None:
    own, other = {"input_tokens": 1_000, "output_tokens": 0}, {"input_tokens": 500, "output_tokens": 0}
    known = {**other, "model": "claude-opus-4-5-20251101", "type": "advisor_message"}
    unknown = {**other, "model": "claude-nobody", "type": "advisor_message"}
    route = Route("ORCHESTRATOR", "claude-opus-4-5-20251101", "anthropic")
    prices = BOOK.at(route.provider, route.model, NOW)

    def cost(*passes: Any) -> Decimal | None:
        answer = claude({**own, "iterations": [{**own, "type": "message"}, *passes]})
        return books.cost_of(answer, route, prices, BOOK, NOW).list_usd

    assert cost() == Decimal("0.015")
    assert cost(known) == Decimal("0.0225")
    assert cost(known, unknown) is None


# Content


def test_content_may_be_a_list_or_nothing() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "thinking", "thinking": "x"},
        {"type": "text", "text": "b"},
    ]

    assert openrouter.read_reply(chat(message={"content": parts})).content == "ab"
    assert openrouter.read_reply(chat(message={"content": None})).content == ""


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"x": 0.5}', {"input": {"x": 0.5}}),
        ("", {"input": {}}),
        (None, {"input": {}}),
        ({"x": 1}, {"input": {"x": 1}}),
        ('{}{"x": 1}', {"input": None, "input_raw": '{}{"x": 1}'}),
        ("[1]", {"input": None, "input_raw": "[1]"}),
    ],
)
def test_tool_arguments_are_an_object_or_kept_raw(arguments: Any, read: dict[str, Any]) -> None:
    call = {"id": "c1", "function": {"name": "click", "arguments": arguments}}
    answer = openrouter.read_reply(chat(message={"tool_calls": [call]}))

    assert answer.tool_calls == ({"id": "c1", "name": "click", **read},)
    assert answer.stop_reason == "tool_use"


def test_a_content_filter_inside_200_is_a_refusal_and_an_answer() -> None:
    assert openrouter.read_reply(chat(finish_reason="content_filter")).stop_reason == "refusal"


def test_lone_surrogates_do_not_stop_a_request() -> None:
    assert encoded({"text": "a\ud800b"}) == b'{"text":"a?b"}'


@pytest.mark.parametrize("value", [datetime(2026, 1, 1, tzinfo=UTC), float("nan"), {1, 2}, b"x"])
def test_what_json_cannot_say_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        encoded({"value": value})


# Failures


@pytest.mark.parametrize(
    ("status", "said", "error_type"),
    [
        (400, "prompt is too long: 210000 tokens > 200000 maximum", "context_length_exceeded"),
        (400, "This endpoint's maximum context length is 32768 tokens.", "context_length_exceeded"),
        (400, "Your credit balance is too low to access the API.", "insufficient_credits"),
        (400, "You have reached your specified API usage limits.", "spend_limit_reached"),
        (429, "limit: enforced_spend_limit_reached", "spend_limit_reached"),
        (403, "Key limit exceeded (monthly limit).", "spend_limit_reached"),
        (400, "Output blocked by content filtering policy", "content_filtered"),
        (403, 'Input flagged: flagged for ["violence"]', "content_filtered"),
        (400, "max_tokens: field required", "invalid_request"),
        (422, "unprocessable", "invalid_request"),
        (401, "", "authentication_failed"),
        (402, "more credits, or fewer max_tokens", "insufficient_credits"),
        (403, "not allowed", "permission_denied"),
        (404, "no such model", "not_found"),
        (408, "", "server_error"),
        (409, "", "server_error"),
        (413, "", "request_too_large"),
        (429, "slow down", "rate_limited"),
        (500, "", "server_error"),
        (502, "", "server_error"),
        (503, "", "overloaded"),
        (504, "", "server_error"),
        (529, "", "overloaded"),
        (599, "", "server_error"),
        (302, "", "not_found"),
    ],
)
def test_a_status_and_its_words_name_the_failure(status: int, said: str, error_type: str) -> None:
    assert error_type_of(status, said) == error_type


def failed(reader: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> ProviderError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ProviderError) as caught:
        reader.read_reply(Reply(status, headers or {}, content))
    return caught.value


@pytest.mark.parametrize(
    ("code", "error_type"),
    [(429, "rate_limited"), ("429", "rate_limited"), (402, "insufficient_credits"), ("odd", "server_error")],
)
def test_an_error_inside_200_goes_by_its_own_code(code: Any, error_type: str) -> None:
    failure = failed(openrouter, 200, {"error": {"code": code, "message": "no"}})

    assert failure.error_type == error_type
    assert failure.http_status == 200
    assert failure.billing_rule == "error_in_answer"


def test_anthropics_error_inside_200_goes_by_its_type() -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    assert failed(anthropic, 200, body).error_type == "overloaded"


@pytest.mark.parametrize("reader", [anthropic, openrouter])
@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000]
)
def test_a_200_that_is_no_answer_may_have_been_billed(reader: Any, body: bytes) -> None:
    failure = failed(reader, 200, body)

    assert failure.error_type == "malformed_response"
    assert failure.billing_rule == "unreadable_answer"
    assert failure.retryable


def test_markup_is_no_message() -> None:
    page = b"<html><head><title>502 Bad Gateway</title></head>\r\n<body>cloudflare</body></html>"

    assert str(failed(anthropic, 502, page)) == "HTTP 502: 502 Bad Gateway cloudflare"


@pytest.mark.parametrize(
    "key",
    [
        "sk-ant-api03-AbCd_1234-efgh",
        "sk-or-v1-0123456789abcdef",
        "Bearer abcdefgh12345678",
        'x-api-key: "hunter2hunter2"',
        "Authorization: Basic-abcdefgh",
    ],
)
def test_keys_do_not_pass_into_messages_or_names(key: str) -> None:
    secret = key.split()[-1].strip('"')
    failure = failed(openrouter, 401, {"error": {"message": f"invalid key {key} given", "code": 401}})

    assert secret not in str(failure)
    assert "[key]" in str(failure)
    assert secret not in (name(key) or "")


def test_plain_words_about_keys_are_left_alone() -> None:
    said = "Incorrect API key provided: REDACTED. A key-value store is not affected."

    assert scrubbed(said) == said


# The law: whatever a provider sends, there is an answer or a failure, and the books can hold it.

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["text", "tool_use", "stop", "a\u2028b\x00", "\ud800", "x" * 600]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("id", "model", "content", "usage", "type", "text", "input", "name", "error", "code"),
                    *("message", "choices", "finish_reason", "stop_reason", "tool_calls", "function"),
                    *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "cost"),
                    *(
                        "prompt_tokens_details",
                        "cached_tokens",
                        "cache_creation",
                        "iterations",
                        "service_tier",
                    ),
                    *(
                        "is_byok",
                        "cost_details",
                        "upstream_inference_cost",
                        "provider",
                        "metadata",
                        "arguments",
                    ),
                ]
            ),
            inner,
            max_size=8,
        )
    ),
    max_leaves=25,
)


@st.composite
def _bodies(draw: Any) -> bytes:
    body = draw(_JSON)
    if isinstance(body, dict):
        usage, message = draw(_JSON), draw(_JSON)
        body = {**body, "usage": usage, "content": draw(_JSON), "choices": [{"message": message}]}
        if draw(st.booleans()):
            body.pop("error", None)
    return json.dumps(body).encode()


@settings(max_examples=300, deadline=None)
@given(
    reader=st.sampled_from([anthropic, openrouter]),
    body=_bodies(),
    status=st.sampled_from([200, 200, 400, 529]),
)
def test_whatever_comes_the_books_can_hold_it(reader: Any, body: bytes, status: int) -> None:
    request = books.Request("r", "s", "analyze_page", None, "REASONING")
    route = Route("REASONING", "deepseek/deepseek-chat", "openrouter")
    prices = BOOK.at(route.provider, route.model, NOW)
    attempt = books.Attempt(request, "a", 1, route, 100, Decimal("0.1"), prices, BOOK.hash)
    headers = {"request-id": "r\x00q", "x-generation-id": "\u2028" * 300, "retry-after": "1"}
    try:
        answer = reader.read_reply(Reply(status, headers, body))
    except ProviderError as failure:
        cost = (
            books.cost_of(failure.partial, route, prices, BOOK, NOW)
            if failure.partial
            else books.Cost(None, None)
        )
        event: Any = books.failed(attempt, failure, cost, books.Timing(NOW, 1.0), None)
        assert isinstance(event, AttemptFailed)
    else:
        cost = books.cost_of(answer, route, prices, BOOK, NOW)
        event = books.succeeded(attempt, answer, cost, books.Timing(NOW, 1.0))
        assert isinstance(event, AttemptSucceeded)
        assert "Decimal" not in repr([call["input"] for call in answer.tool_calls])
    event.model_dump_json()


@given(_JSON)
def test_json_read_exactly_is_written_back_equal(value: Any) -> None:
    text = json.dumps(value)
    if "NaN" not in text and "Infinity" not in text:
        assert json.loads(compact(decoded(text.encode()))) == json.loads(text)
    assert repr(plain(decoded(text.encode()))) == repr(json.loads(text))


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":10,"completion_tokens":1,"cost":1e999999999}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":1e99999999999999999999}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":-1}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":NaN}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":"0.1"}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":1000000}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":0.5,"is_byok":true}',
        '{"prompt_tokens":10,"completion_tokens":1,"cost":"x","is_byok":true,'
        '"cost_details":{"upstream_inference_cost":0.02}}',
        '{"prompt_tokens":1e99999999999999999999,"completion_tokens":1}',
        '{"prompt_tokens":' + "9" * 5_000 + ',"completion_tokens":1}',
    ],
)
def test_a_cost_that_cannot_be_meant_is_unknown_and_the_answer_is_kept(usage: str) -> None:
    body = (
        '{"id":"g","model":"deepseek/deepseek-chat","choices":[{"message":{"content":"ok"},'
        f'"finish_reason":"stop"}}],"usage":{usage}}}'
    )
    answer = openrouter.read_reply(Reply(200, {}, body.encode()))
    route = Route("REASONING", "deepseek/deepseek-chat", "openrouter")
    prices = BOOK.at(route.provider, route.model, NOW)

    assert answer.content == "ok"
    assert answer.usage_suspect
    assert books.cost_of(answer, route, prices, BOOK, NOW).usd is None
