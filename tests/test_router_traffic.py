"""Recorded traffic through the readers: text, tool calls, stop reason, usage, cost, ids, failures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.prices import Usage
from router.errors import ProviderError
from router.providers import anthropic, openrouter
from router.providers.wire import Answer, Reply, added

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")

pytestmark = pytest.mark.skipif(
    not (_TRAFFIC / "expected.json").is_file(), reason=f"no recorded traffic at {_TRAFFIC}"
)

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    None: "end_turn",
}


def _unstreamed() -> Iterator[str]:
    if not (_TRAFFIC / "index.json").is_file():
        return
    for row in json.loads((_TRAFFIC / "index.json").read_text("utf-8")):
        if not row["stream"] and row["kind"] != "count_tokens":
            yield row["file"]


def _expected() -> Mapping[str, Mapping[str, Any]]:
    content: Mapping[str, Mapping[str, Any]] = json.loads((_TRAFFIC / "expected.json").read_text("utf-8"))
    return content


def _reply(file: str) -> Reply:
    response = json.loads((_TRAFFIC / file).read_text("utf-8"))["response"]
    body = json.dumps(response["body"]) if "body" in response else response.get("text", "")
    headers = {name.lower(): value for name, value in response["headers"].items()}
    return Reply(response["status"], headers, body.encode())


def _read(file: str) -> Answer:
    reader = anthropic if file.startswith("anthropic") else openrouter
    return reader.read_reply(_reply(file))


FILES = list(_unstreamed())
ANSWERS = [file for file in FILES if not _expected()[file].get("error")]
FAILURES = [file for file in FILES if _expected()[file].get("error")]


@pytest.mark.parametrize("file", ANSWERS)
def test_text_and_tool_calls_are_what_the_sdk_reads(file: str) -> None:
    answer, expected = _read(file), _expected()[file]

    assert answer.content == expected["text"]
    assert [call["id"] for call in answer.tool_calls] == [call["id"] for call in expected["tool_calls"]]
    for call, known in zip(answer.tool_calls, expected["tool_calls"], strict=True):
        assert call["input"] == known["input"]
        assert known["name"] in (call["name"], None)  # the SDK reads no name of a custom tool
        if known["input"] is None:
            assert call["input_raw"] == known["arguments_raw"]


@pytest.mark.parametrize("file", ANSWERS)
def test_stop_reasons_are_said_in_one_providers_words(file: str) -> None:
    answer, expected = _read(file), _expected()[file]

    assert answer.provider_stop_reason == expected["stop_reason"]
    if expected.get("refusal"):
        assert answer.stop_reason == "refusal"
    elif answer.tool_calls and expected["stop_reason"] in ("stop", None):
        assert answer.stop_reason == "tool_use"
    else:
        assert answer.stop_reason == _STOP_REASONS.get(expected["stop_reason"], expected["stop_reason"])


@pytest.mark.parametrize("file", ANSWERS)
def test_ids_model_and_upstream_are_kept(file: str) -> None:
    answer, expected = _read(file), _expected()[file]

    assert answer.id == expected["response_id"]
    assert answer.model == expected["model"]
    assert answer.upstream_provider == expected.get("upstream_provider")


@pytest.mark.parametrize("file", ANSWERS)
def test_the_buckets_add_up_to_what_the_provider_reported(file: str) -> None:
    answer, known = _read(file), _expected()[file]["usage"]
    read = answer.usage if "usage_iterations" not in _expected()[file] else _last_pass(file)

    assert read.cache_read_tokens == (known["cache_read"] or 0)
    assert read.web_search_requests == (known.get("web_search_requests") or 0)
    if known["convention"] == "input_excludes_cache":
        assert read.input_tokens == known["input_tokens"]
        assert read.cache_write_5m_tokens + read.cache_write_1h_tokens == (known["cache_write"] or 0)
        assert read.cache_write_1h_tokens == (known["cache_write_1h"] or 0)
    else:
        cached = read.cache_read_tokens + read.cache_write_5m_tokens
        assert read.input_tokens == max(known["input_tokens"] - cached, 0)
        assert read.prompt_tokens == known["input_tokens"] or answer.usage_suspect
    _check_output(answer, read, known)


def _last_pass(file: str) -> Usage:
    """The usage at the top level, which leaves some passes out."""
    usage = dict(json.loads(_reply(file).body)["usage"])
    usage.pop("iterations", None)
    return anthropic.read_usage(usage, anthropic.Numbers())[0]


def _check_output(answer: Answer, read: Usage, known: Mapping[str, Any]) -> None:
    total = known.get("total_tokens")
    if total and total != known["input_tokens"] + known["output_tokens"]:  # reasoning is counted apart
        assert read.output_tokens == known["output_tokens"] + known["reasoning"]
        assert read.prompt_tokens + read.output_tokens == total
        assert answer.usage_suspect
    else:
        assert read.output_tokens == known["output_tokens"]
    if known["reasoning"] is not None:
        assert read.reasoning_tokens == known["reasoning"]


@pytest.mark.parametrize("file", [file for file in ANSWERS if _expected()[file].get("usage_iterations")])
def test_every_pass_is_billed_once(file: str) -> None:
    answer, passes = _read(file), _expected()[file]["usage_iterations"]
    everything = added([answer.usage, *(usage for _, usage in answer.passes)])

    assert everything.input_tokens == sum(row["input_tokens"] for row in passes)
    assert everything.output_tokens == sum(row["output_tokens"] for row in passes)
    assert everything.cache_read_tokens == sum(row["cache_read"] for row in passes)
    written = everything.cache_write_5m_tokens + everything.cache_write_1h_tokens
    assert written == sum(row["cache_write"] for row in passes)
    assert [model for model, _ in answer.passes] == [row["model"] for row in passes if row["model"]]


@pytest.mark.parametrize("file", ANSWERS)
def test_the_cost_is_the_providers_own_to_the_last_digit(file: str) -> None:
    answer, expected = _read(file), _expected()[file]
    reported = expected.get("provider_cost_usd")

    if reported is None:
        assert answer.cost_usd is None
        return
    billed = Decimal(str(reported))
    if expected.get("is_byok"):
        billed += Decimal(str(expected["upstream_inference_cost_usd"]))
    assert answer.cost_usd == round(billed, 12)


@pytest.mark.parametrize("file", ANSWERS)
def test_the_usage_is_kept_as_it_was_spelt(file: str) -> None:
    answer, body = _read(file), json.loads(_reply(file).body)

    assert answer.usage_json is not None
    assert json.loads(answer.usage_json) == body["usage"]
    assert answer.usage_json in _reply(file).body.decode()


_BY_STATUS = {
    400: "invalid_request",
    401: "authentication_failed",
    402: "insufficient_credits",
    403: "permission_denied",
    404: "not_found",
    413: "request_too_large",
    429: "rate_limited",
    500: "server_error",
    502: "server_error",
    522: "server_error",
    529: "overloaded",
}


@pytest.mark.parametrize("file", FAILURES)
def test_failures_are_told_apart_and_carry_what_the_provider_said(file: str) -> None:
    reply, known = _reply(file), _expected()[file]["error"]
    with pytest.raises(ProviderError) as caught:
        _read(file)
    failure = caught.value

    inner = known.get("code") if known["status"] == 200 else known["status"]
    if known["status"] == 200:
        inner = known["body"]["code"]
    assert failure.error_type == _BY_STATUS[inner]
    assert failure.http_status == known["status"]
    told = {"true": True, "false": False}.get(reply.headers.get("x-should-retry", ""))
    assert failure.retryable == (inner in (429, 500, 502, 522, 529) if told is None else told)
    if "retry-after" in known:
        assert failure.retry_after_s == float(known["retry-after"])
    if known.get("request-id") and file.startswith("anthropic"):
        assert failure.provider_request_id == known["request-id"]
    assert len(str(failure)) <= 500
    assert "\n" not in str(failure)


def test_an_error_beside_partial_text_is_a_failure_that_was_billed() -> None:
    with pytest.raises(ProviderError) as caught:
        _read("openrouter_choice_error_json_001.json")

    assert caught.value.billing_rule == "answered_with_error"
    assert caught.value.partial is not None
    assert caught.value.partial.usage == Usage(input_tokens=89, output_tokens=972)
