"""Anthropic's Messages API: what it is sent, and what its answers mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ledger.prices import STANDARD_TIERS, Usage
from router.errors import ProviderError
from router.messages import anthropic_history
from router.params import Asked, Told, log_changes, told
from router.providers.client import Assembler, Call, PricesPerMtok
from router.providers.failures import failure_in_answer, failure_of_status, failure_to_read
from router.providers.wire import (
    Answer,
    Numbers,
    Pass,
    Reply,
    added,
    arguments,
    decoded,
    name,
    rows,
    table,
    verbatim,
    words_of,
)
from router.tools import anthropic_tools
from router.types import ToolCall

PROVIDER = "anthropic"

_BOUNDED = frozenset(
    {
        *("model", "messages", "max_tokens", "system", "tools", "tool_choice", "stop_sequences"),
        *("temperature", "top_p", "top_k", "metadata", "thinking", "output_config", "stream"),
    }
)


def request_body(call: Call, model: str, max_price: PricesPerMtok | None = None) -> dict[str, Any]:
    """The body of POST /v1/messages. Anthropic's prices are its own: it takes no max_price."""
    system, messages = anthropic_history(call.messages, call.system)
    body: dict[str, Any] = {"model": model, "max_tokens": call.max_tokens, "messages": messages}
    if system:
        body["system"] = system
    tools, tools_left_out = anthropic_tools(call.tools or ())
    if tools:
        body["tools"] = tools
    params = _told(call, bool(tools))
    log_changes(PROVIDER, params, tools_left_out)
    return {**body, **params.body, **({"stream": True} if call.stream else {})}


def _told(call: Call, has_tools: bool) -> Told:
    given = {"temperature": call.temperature, **call.params}
    return told("anthropic", Asked(given, call.max_tokens, has_tools))


def assembler() -> Assembler:
    """What puts a stream together."""
    from router.providers.anthropic_stream import AnthropicStream

    return AnthropicStream()


def why_unbounded(body: Mapping[str, Any]) -> str | None:
    """What in a body may cost more than its size tells; None: nothing."""
    if not body.keys() <= _BOUNDED:
        return f"parameter {min(body.keys() - _BOUNDED)}"
    for tool in body.get("tools", ()):
        if tool.get("type") not in (None, "custom"):
            return f"server tool {tool.get('type')}"
    for block in _blocks(body["messages"]):
        source = block.get("source")
        if isinstance(source, Mapping) and source.get("type") not in ("base64", "text", "content"):
            return f"{block.get('type')} by {source.get('type')}"
        if block.get("type") == "document" and table(source).get("type") == "base64":
            return "a document that is not text"
    return None


def _blocks(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        for block in rows(message.get("content")):
            yield block
            yield from rows(block.get("content"))


def request_id_of(reply: Reply) -> str | None:
    return name(reply.headers.get("request-id"))


def read_reply(reply: Reply) -> Answer:
    """The answer in a reply. Raises ProviderError where there is none."""
    request_id = request_id_of(reply)
    try:
        content = decoded(reply.body)
    except ValueError as error:
        if not 200 <= reply.status < 300:
            raise failure_of_status(PROVIDER, reply, words_of(reply), request_id) from error
        raise failure_to_read(PROVIDER, reply, f"not JSON: {words_of(reply)[:80]!r}", request_id) from error
    message = table(content)
    request_id = request_id or name(message.get("request_id"))
    if not 200 <= reply.status < 300:
        raise failure_of_status(PROVIDER, reply, said_by(message) or words_of(reply), request_id)
    if "error" in message or message.get("type") == "error":
        raise _error_in_answer(reply, message, request_id)
    if not isinstance(message.get("content"), list):
        raise failure_to_read(PROVIDER, reply, "it has no content", request_id)
    return answer_of(message, reply, request_id)


_STATUS_OF_ERROR = {
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "invalid_request_error": 400,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def _error_in_answer(reply: Reply, message: Mapping[str, Any], request_id: str | None) -> ProviderError:
    partial = answer_of(message, reply, request_id) if message.get("usage") else None
    return failure_in_answer(PROVIDER, reply, code_of(message), said_by(message), partial, request_id)


def code_of(message: Mapping[str, Any]) -> int | None:
    """The HTTP status that an error inside an answer stands for; None: an unknown kind."""
    return _STATUS_OF_ERROR.get(str(table(message.get("error")).get("type")))


def said_by(message: Mapping[str, Any]) -> str:
    """What an error body says, codes that decide included."""
    error = table(message.get("error"))
    code = table(error.get("details")).get("error_code")
    words = [error.get("message"), code, message.get("title"), message.get("detail")]
    return ": ".join(str(word) for word in words if word)


def answer_of(message: Mapping[str, Any], reply: Reply, request_id: str | None) -> Answer:
    """What a Message says; one that was put together from a stream is like any other."""
    blocks = rows(message.get("content"))
    calls = tuple(_tool_call(block) for block in blocks if block.get("type") == "tool_use")
    numbers = Numbers()
    reported = table(message.get("usage"))
    model = name(message.get("model"))
    usage, passes = read_usage(reported, model, numbers)
    stop = name(message.get("stop_reason"))
    return Answer(
        content="".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text"),
        tool_calls=calls,
        usage=usage,
        passes=passes,
        stop_reason=stop or ("tool_use" if calls else "end_turn"),
        provider_stop_reason=stop,
        model=model,
        id=name(message.get("id")),
        service_tier=_service_tier(reported),
        usage_json=verbatim(reply.body, message.get("usage")),
        usage_suspect=numbers.suspect(),
        usage_known=numbers.known,
        http_status=reply.status,
        provider_request_id=request_id,
    )


def _tool_call(block: Mapping[str, Any]) -> ToolCall:
    return arguments(str(block.get("id") or ""), block.get("name"), block.get("input"))


def _service_tier(reported: Mapping[str, Any]) -> str | None:
    """What sets the price, as one name: the tier, fast mode and inference in one country, as in fast+us."""
    tier = name(reported.get("service_tier"))
    speed = name(reported.get("speed"))
    dearer = [word for word in (tier, speed) if word not in STANDARD_TIERS]
    if reported.get("inference_geo") == "us":
        dearer.append("us")
    return name("+".join(dearer)) if dearer else tier


def read_usage(
    reported: Mapping[str, Any], model: str | None, numbers: Numbers
) -> tuple[Usage, tuple[Pass, ...]]:
    """Tokens by bucket, and its parts where a model ran more than once.

    Compaction and advisor passes stand only in `iterations`, and are billed, each at the price of
    its own model. What stands beside them is the sum of some of the passes of `model`.
    """
    at_top = Numbers()
    top = _buckets(reported, at_top)
    searches = numbers.searches(table(reported.get("server_tool_use")), free=("web_fetch_requests",))
    passes = _passes(reported.get("iterations"), model, numbers)
    numbers.problems += at_top.problems
    own = added([Usage(), *(part.usage for part in passes if part.model is None)])
    if passes and own.prompt_tokens >= top.prompt_tokens and own.output_tokens >= top.output_tokens:
        if searches:  # billed once, whichever pass made them
            passes.append(Pass(None, Usage(web_search_requests=searches)))
    else:
        if passes:
            numbers.doubt("iterations add up to less than the whole; the whole is taken")
        numbers.known = numbers.known and at_top.known
        others = [part for part in passes if part.model is not None]
        passes = [Pass(None, top._replace(web_search_requests=searches)), *others]
    whole = added(part.usage for part in passes)
    reasoning = max(whole.reasoning_tokens, top.reasoning_tokens)
    return whole._replace(reasoning_tokens=reasoning), tuple(passes) if len(passes) > 1 else ()


def _passes(iterations: Any, model: str | None, numbers: Numbers) -> list[Pass]:
    found = rows(iterations)
    if iterations and not (isinstance(iterations, list) and len(found) == len(iterations)):
        numbers.doubt("iterations are not a list of passes")
    passes = []
    for row in found:
        other = name(row.get("model"))
        passes.append(Pass(None if other == model else other, _buckets(row, numbers)))
    return passes


def _buckets(reported: Mapping[str, Any], numbers: Numbers) -> Usage:
    output = numbers.required(reported, "output_tokens")
    reasoning = numbers.count(table(reported.get("output_tokens_details")), "thinking_tokens")
    if reasoning > output:
        numbers.doubt(f"thinking_tokens ({reasoning}) exceed output_tokens ({output})")
    for_5m, for_1h = _written(reported, numbers)
    return Usage(
        input_tokens=numbers.required(reported, "input_tokens"),
        cache_read_tokens=numbers.count(reported, "cache_read_input_tokens"),
        cache_write_5m_tokens=for_5m,
        cache_write_1h_tokens=for_1h,
        output_tokens=output,
        reasoning_tokens=min(reasoning, output),
    )


def _written(reported: Mapping[str, Any], numbers: Numbers) -> tuple[int, int]:
    """Tokens written to the 5-minute and the 1-hour cache; what is told of neither is of the first."""
    written = numbers.count(reported, "cache_creation_input_tokens")
    by_age = table(reported.get("cache_creation"))
    for_5m = numbers.count(by_age, "ephemeral_5m_input_tokens")
    for_1h = numbers.count(by_age, "ephemeral_1h_input_tokens")
    if written < for_5m + for_1h:
        numbers.doubt(f"5m + 1h ({for_5m + for_1h}) exceed cache_creation_input_tokens ({written})")
        return for_5m, for_1h
    if written > for_5m + for_1h:
        numbers.note(
            f"cache_creation_input_tokens ({written}) exceed 5m + 1h ({for_5m + for_1h});"
            " the rest is taken as 5m"
        )
    return written - for_1h, for_1h
