"""OpenRouter's chat completions: what they are sent, and what their answers mean."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ledger.money import total, usd
from ledger.prices import Usage
from router.messages import openai_history
from router.params import Asked, Told, log_changes, told
from router.providers.client import Assembler, Call, PricesPerMtok
from router.providers.failures import failure_in_answer, failure_of_status, failure_to_read
from router.providers.wire import (
    Answer,
    Numbers,
    Reply,
    arguments,
    compact,
    decoded,
    name,
    rows,
    table,
    verbatim,
    words_of,
)
from router.tools import openai_tools
from router.types import ToolCall

PROVIDER = "openrouter"

# The models that read cache_control, by how their names begin; the others cache by themselves or not at all.
_CACHING = ("anthropic/", "google/")
_BOUNDED = frozenset(
    {
        *("model", "messages", "max_tokens", "n", "stop", "seed", "user", "provider", "reasoning"),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "stream", "stream_options"),
        *("temperature", "top_p", "top_k", "top_a", "min_p", "logit_bias", "logprobs", "top_logprobs"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty"),
    }
)
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def request_body(call: Call, model: str, max_price: PricesPerMtok | None = None) -> dict[str, Any]:
    """The body of a call of POST /chat/completions."""
    caching = model.startswith(_CACHING)
    body: dict[str, Any] = {
        "model": model,
        "messages": openai_history(call.messages, call.system, caching=caching),
        "max_tokens": call.max_tokens,
    }
    tools, tools_left_out = openai_tools(call.tools or (), caching=caching)
    if tools:
        body["tools"] = tools
    params = _told(call, bool(tools))
    log_changes(PROVIDER, params, tools_left_out)
    body.update(params.body)
    if call.stream:
        body.update(stream=True, stream_options={"include_usage": True})
    if max_price is not None:
        limits = {"prompt": float(max_price.prompt), "completion": float(max_price.completion)}
        body["provider"] = {**table(body.get("provider")), "max_price": limits}
    return body


def _told(call: Call, has_tools: bool) -> Told:
    given = {"temperature": call.temperature, **call.params}
    return told("openrouter", Asked(given, call.max_tokens, has_tools))


def assembler() -> Assembler:
    """What puts a stream together."""
    from router.providers.openrouter_stream import OpenRouterStream

    return OpenRouterStream()


def why_unbounded(body: Mapping[str, Any]) -> str | None:
    """What in a body may cost more than its size tells; None: nothing."""
    if not body.keys() <= _BOUNDED:
        return f"parameter {min(body.keys() - _BOUNDED)}"
    if str(body["model"]).endswith(":online"):
        return "web search"
    if body.get("n", 1) not in range(1, 129):
        return "parameter n"
    for tool in body.get("tools", ()):
        if tool.get("type", "function") != "function":
            return f"server tool {tool.get('type')}"
    for message in body["messages"]:
        for part in rows(message.get("content")):
            if part.get("type") == "image_url" and not _is_inline(part["image_url"]):
                return "an image by URL"
            if part.get("type") not in ("text", "image_url"):
                return f"content of type {part.get('type')}"
    return None


def _is_inline(image: Any) -> bool:
    url = image.get("url") if isinstance(image, Mapping) else image
    return str(url).startswith("data:")


def request_id_of(reply: Reply) -> str | None:
    return name(reply.headers.get("x-generation-id")) or name(reply.headers.get("x-request-id"))


def read_reply(reply: Reply) -> Answer:
    """The answer in a reply. Raises ProviderError where there is none."""
    request_id = request_id_of(reply)
    try:
        completion = table(decoded(reply.body))
    except ValueError as error:
        if not 200 <= reply.status < 300:
            raise failure_of_status(PROVIDER, reply, words_of(reply), request_id) from error
        raise failure_to_read(PROVIDER, reply, f"not JSON: {words_of(reply)[:80]!r}", request_id) from error
    if not 200 <= reply.status < 300:
        raise failure_of_status(PROVIDER, reply, said_by(completion) or words_of(reply), request_id)
    choices = rows(completion.get("choices"))
    first = choices[0] if choices else {}
    error_found = completion.get("error") or first.get("error")
    if error_found or first.get("finish_reason") == "error":
        partial = answer_of(completion, first, reply, request_id)
        code = table(error_found).get("code")
        raise failure_in_answer(PROVIDER, reply, code, said_by({"error": error_found}), partial, request_id)
    if not isinstance(first.get("message"), dict):
        raise failure_to_read(PROVIDER, reply, "it has no message", request_id)
    return answer_of(completion, first, reply, request_id)


def said_by(body: Mapping[str, Any]) -> str:
    """What an error body says, the upstream's own words included."""
    found = body.get("error")
    if not isinstance(found, dict):
        return str(found or "")
    more = table(found.get("metadata"))
    code = found.get("code") if isinstance(found.get("code"), str) else None
    reasons = more.get("reasons")
    flagged = f"flagged for {compact(reasons)}" if reasons else None
    raw = more.get("raw")
    upstream = raw if isinstance(raw, str) else raw and compact(raw)
    words = [found.get("message"), code, flagged, more.get("provider_name"), upstream]
    return ": ".join(str(word) for word in words if word)


def answer_of(
    completion: Mapping[str, Any], choice: Mapping[str, Any], reply: Reply, request_id: str | None
) -> Answer:
    """What a completion says in one of its choices, be it put together from a stream or not."""
    message = table(choice.get("message"))
    answer_id = name(completion.get("id"))
    calls = tuple(
        _tool_call(call, f"{answer_id or 'call'}_{index}")
        for index, call in enumerate(rows(message.get("tool_calls")))
    )
    reported = table(completion.get("usage"))
    numbers = Numbers()
    usage = read_usage(reported, numbers)
    _check_extras(message, usage, numbers)
    cost, upstream_cost = _costs(reported, numbers)
    finish = name(choice.get("finish_reason"))
    return Answer(
        content=text_of(message.get("content")),
        tool_calls=calls,
        usage=usage,
        stop_reason=_stop_reason(finish, bool(calls), message),
        provider_stop_reason=finish,
        model=name(completion.get("model")),
        id=answer_id,
        cost_usd=cost,
        upstream_cost_usd=upstream_cost,
        is_byok=reported["is_byok"] if isinstance(reported.get("is_byok"), bool) else None,
        upstream_provider=name(completion.get("provider")),
        service_tier=name(completion.get("service_tier")) or name(reported.get("service_tier")),
        usage_json=verbatim(reply.body, completion.get("usage")),
        usage_suspect=numbers.suspect(),
        usage_known=numbers.known,
        http_status=reply.status,
        provider_request_id=request_id,
    )


def text_of(content: Any) -> str:
    """The text of an answer; some send it as a list of parts, some as nothing."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in rows(content) if part.get("type") == "text")


def _tool_call(call: Mapping[str, Any], own_id: str) -> ToolCall:
    function = table(call.get("function"))
    called = function.get("name") or table(call.get("custom")).get("name")
    return arguments(str(call.get("id") or own_id), called, function.get("arguments"))


def _stop_reason(finish: str | None, has_calls: bool, message: Mapping[str, Any]) -> str:
    """In Anthropic's words. Some say `stop` or nothing although they call tools, or refuse."""
    if finish in (None, "stop"):
        if has_calls:
            return "tool_use"
        return "refusal" if message.get("refusal") and not message.get("content") else "end_turn"
    return _STOP_REASONS.get(finish, finish)


def _check_extras(message: Mapping[str, Any], usage: Usage, numbers: Numbers) -> None:
    """What is billed and shows in the message alone: searches that are not counted, files that were read."""
    kinds = {str(row.get("type")) for row in rows(message.get("annotations"))}
    if "url_citation" in kinds and not usage.web_search_requests:
        numbers.doubt("the web was searched, and web_search_requests is not reported")
    if "file" in kinds:
        numbers.has_no_price()


def read_usage(reported: Mapping[str, Any], numbers: Numbers) -> Usage:
    """Tokens by bucket: what is cached is taken out of the prompt, what was thought stays in the output."""
    details = table(reported.get("prompt_tokens_details"))
    prompt = numbers.required(reported, "prompt_tokens")
    cached = numbers.count(details, "cached_tokens")
    written = numbers.count(details, "cache_write_tokens")
    if cached + written > prompt:
        numbers.doubt(
            f"cached_tokens ({cached}) + cache_write_tokens ({written}) exceed prompt_tokens ({prompt})"
        )
    output, reasoning = _output(reported, prompt, numbers)
    tools = table(reported.get("server_tool_use_details")) or table(reported.get("server_tool_use"))
    answered = table(reported.get("completion_tokens_details"))
    if details.get("audio_tokens") or answered.get("audio_tokens") or answered.get("image_tokens"):
        numbers.has_no_price()  # they have prices of their own
    return Usage(
        input_tokens=max(prompt - cached - written, 0),
        cache_read_tokens=cached,
        cache_write_5m_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
        web_search_requests=numbers.searches(tools),
    )


def _output(reported: Mapping[str, Any], prompt: int, numbers: Numbers) -> tuple[int, int]:
    """Output and reasoning tokens. Some upstreams count reasoning apart: their total shows it."""
    completion = numbers.required(reported, "completion_tokens")
    reasoning = numbers.count(table(reported.get("completion_tokens_details")), "reasoning_tokens")
    total = numbers.count(reported, "total_tokens")
    if reasoning and total == prompt + completion + reasoning:
        numbers.doubt(f"reasoning_tokens ({reasoning}) are counted beside completion_tokens ({completion})")
        return completion + reasoning, reasoning
    if reasoning > completion:
        numbers.doubt(f"reasoning_tokens ({reasoning}) exceed completion_tokens ({completion})")
    if total and total != prompt + completion:
        numbers.doubt(f"total_tokens ({total}) are not prompt + completion ({prompt + completion})")
    return completion, min(reasoning, completion)


def _costs(reported: Mapping[str, Any], numbers: Numbers) -> tuple[Decimal | None, Decimal | None]:
    """What was billed in all, and the upstream's part of it, in USD.

    With one's own upstream key OpenRouter bills its fee alone, and the upstream the rest.
    """
    cost = numbers.cost(reported, "cost")
    upstream = numbers.cost(table(reported.get("cost_details")), "upstream_inference_cost")
    is_byok = reported.get("is_byok")
    if not is_byok:
        return cost, upstream
    if is_byok is not True:
        numbers.doubt(f"is_byok is {compact(is_byok)[:40]}, neither true nor false")
        return None, upstream
    if upstream is None or cost is None:
        numbers.doubt("is_byok, and a part of the cost is not reported")
        return None, upstream
    billed = usd(total([cost, upstream]))
    if billed is None:
        numbers.doubt("cost and upstream_inference_cost add up to no amount that can be meant")
    return billed, upstream
