"""From a call and a `Reply` to the bytes a provider would send. Pure: no I/O, no clock.

    call_of(path, bytes) ──▶ Call ──answer_to(call, reply, seed, prices)──▶ Answer
                                      ├─anthropic_body / openrouter_body──▶ bytes
                                      └─streams.events_of──▶ the same, event by event

Answer k of a model under a seed is always the same, whatever other models were asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, Literal, NamedTuple

from router.simulator.replies import (
    ERROR_OF_STATUS,
    Called,
    ErrorWord,
    Price,
    Reply,
    Tokens,
    invalid_request,
)

Provider = Literal["anthropic", "openrouter"]

PROVIDER_OF_PATH: Mapping[str, Provider] = {
    "/v1/messages": "anthropic",
    "/api/v1/chat/completions": "openrouter",
}
PIECE_LENGTH = 4  # characters of a token, about
_PER_TOKEN = Decimal("0.000001")
_EPOCH = 1_764_000_000  # of `created`: fixed, so that answers do not depend on the day
_UPSTREAMS = ("DeepInfra", "Fireworks", "Novita", "Together")
_SENTENCES = (
    "The login form has three fields and one submit button, and its labels match their inputs.",
    "The submit handler does not check for an empty password, so the server answers with an error.",
    "The main menu leads to seven pages, two of which need a signed-in user.",
    "A TypeError is thrown in checkout.js when the basket is empty and the total is read.",
    "The console shows one failed request for a font and no errors from the application itself.",
    "The page title is missing, which screen readers announce as an untitled document.",
    "Severity is high: the order is lost and the user is told that it was placed.",
    "Reproduced twice: open the basket, remove the last item, press the checkout button.",
    "The report repeats an earlier one about the same selector and can be merged with it.",
    "Guard the access with a check for undefined and add a test with an empty basket.",
    "Next, visit the account pages, then the search results with filters applied.",
    "No further defects were found on this page.",
)
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_ANTHROPIC_ERRORS: Mapping[ErrorWord, tuple[str, str]] = {
    "invalid_request": ("invalid_request_error", "messages.0: Input does not match the expected shape."),
    "context_length_exceeded": (
        "invalid_request_error",
        "prompt is too long: 214820 tokens > 200000 maximum",
    ),
    "content_filtered": ("invalid_request_error", "Output blocked by content filtering policy"),
    "authentication_failed": ("authentication_error", "invalid x-api-key"),
    "insufficient_credits": (
        "billing_error",
        "Your credit balance is too low to access the Anthropic API. "
        "Please go to Plans & Billing to upgrade or purchase credits.",
    ),
    "spend_limit_reached": (
        "rate_limit_error",
        "This request would exceed your organization's monthly spend limit.",
    ),
    "permission_denied": (
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    "not_found": ("not_found_error", "model: {model}"),
    "request_too_large": ("request_too_large", "Request exceeds the maximum size"),
    "rate_limited": (
        "rate_limit_error",
        "This request would exceed your account's rate limit. Please try again later.",
    ),
    "overloaded": ("overloaded_error", "Overloaded"),
    "server_error": ("api_error", "Internal server error"),
}
_OPENROUTER_ERRORS: Mapping[ErrorWord, tuple[int, str]] = {
    "invalid_request": (400, "Input must have at least 1 token."),
    "context_length_exceeded": (
        400,
        "This endpoint's maximum context length is 131072 tokens. However, you requested about "
        "150210 tokens (146114 of text input, 4096 in the output). Please reduce the length of "
        "either one, or use the context-compression plugin to compress your prompt automatically.",
    ),
    "content_filtered": (403, "{model} requires moderation. Your input was flagged."),
    "authentication_failed": (401, "No auth credentials found"),
    "insufficient_credits": (
        402,
        "Insufficient credits. Add more using https://openrouter.ai/settings/credits",
    ),
    "spend_limit_reached": (
        402,
        "This request requires more credits, or fewer max_tokens. You requested up to 4096 tokens, "
        "but can only afford 361.",
    ),
    "permission_denied": (403, "Provider returned error"),
    "not_found": (404, "No endpoints found for {model}."),
    "request_too_large": (413, "Request body too large"),
    "rate_limited": (429, "Provider returned error"),
    "overloaded": (503, "No instances available"),
    "server_error": (502, "Provider returned error"),
}


class Call(NamedTuple):
    """What was asked. `number` counts the calls to this model from 1.

    `body_bytes` leaves out what asks for a stream: that alone changes no answer.
    """

    provider: Provider
    model: str
    number: int
    body: Mapping[str, Any]
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, before it is put on a wire. `cost_usd` None: none is reported."""

    response_id: str
    model: str
    thinking: str
    text: str
    tool_calls: Mapping[str, Called]  # by id
    stop_reason: str  # in Anthropic's words
    tokens: Tokens
    cost_usd: Decimal | None
    upstream: str
    created: int


def call_of(path: str, sent: bytes) -> tuple[Call, Reply | None]:
    """The call in a request, not yet numbered, and the refusal where the provider would not take it."""
    provider = PROVIDER_OF_PATH.get(path)
    try:
        body = json.loads(sent)
    except ValueError:
        body = None
    known = body if isinstance(body, dict) else {}
    size = len(sent) - _bytes_about_streaming(known, sent)
    call = Call(provider or "openrouter", str(known.get("model", "")), 0, known, size)
    if provider is None:
        return call, Reply(status=404, message=f"no such path: {path}")
    if not isinstance(body, dict):
        return call, invalid_request("the request body is not a JSON object")
    problem = problem_with(provider, body)
    return call, invalid_request(problem) if problem else None


def _bytes_about_streaming(body: Mapping[str, Any], sent: bytes) -> int:
    members = {name: body[name] for name in ("stream", "stream_options") if name in body}
    if not members:
        return 0
    if b'"stream": ' in sent:
        return len(json.dumps(members))  # the braces are as long as the separator before the next member
    return len(json.dumps(members, separators=(",", ":"))) - 1


def wants_stream(body: Mapping[str, Any]) -> bool:
    return bool(body.get("stream"))


def problem_with(provider: Provider, body: Mapping[str, Any]) -> str | None:
    """What the provider would not accept in this body; None: nothing."""
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "model: Field required"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "messages: at least one message is required"
    if provider == "anthropic" and not _is_count(body.get("max_tokens")):
        return "max_tokens: Field required"
    roles = {message.get("role") for message in body["messages"] if isinstance(message, dict)}
    if provider == "anthropic" and not roles <= {"user", "assistant"}:
        return f"messages: Unexpected role {sorted(map(str, roles - {'user', 'assistant'}))[0]!r}"
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def answer_to(call: Call, reply: Reply, seed: int, prices: Mapping[str, Price]) -> Answer:
    """The answer to a call: what the reply gives, the rest from the seed.

    Prompt tokens stay below the bytes of the body, output tokens within max_tokens; a text that
    does not fit is cut and ends with max_tokens.
    """
    rng = Random(f"{seed}/{call.model}/{call.number}")
    asked = next(
        (call.body[name] for name in ("max_tokens", "max_completion_tokens") if name in call.body), 0
    )
    max_tokens = asked if _is_count(asked) else 4096
    thinking = (reply.thinking or "")[: max_tokens * PIECE_LENGTH]
    reasoning_tokens = -(-len(thinking) // PIECE_LENGTH)
    text, text_tokens, cut_short = _text(reply, rng, max_tokens - reasoning_tokens)
    tokens = reply.usage or _tokens(call, rng, reasoning_tokens + text_tokens, reasoning_tokens)
    stop_reason = "tool_use" if reply.called else "max_tokens" if cut_short else "end_turn"
    tag = f"{rng.getrandbits(96):024x}"
    kind = "toolu" if call.provider == "anthropic" else "call"
    ids = [f"{kind}_{tag}{f'_{number}' if number else ''}" for number in range(len(reply.called))]
    return Answer(
        response_id=f"msg_{tag}" if call.provider == "anthropic" else f"gen-{_EPOCH + call.number}-{tag}",
        model=call.model,
        thinking=thinking,
        text=text,
        tool_calls=dict(zip(ids, reply.called, strict=True)),
        stop_reason=reply.stop_reason or stop_reason,
        tokens=tokens,
        cost_usd=_cost_usd(call, reply, tokens, prices),
        upstream=rng.choice(_UPSTREAMS),
        created=_EPOCH + call.number,
    )


def _text(reply: Reply, rng: Random, max_tokens: int) -> tuple[str, int, bool]:
    """Text, the tokens it and its tool calls make (at about four characters each), whether cut short."""
    first = rng.randrange(len(_SENTENCES))
    said = " ".join((_SENTENCES * 2)[first : first + rng.randint(1, 6)])
    if reply.pieces is not None:
        length = reply.pieces * PIECE_LENGTH
        said = (f"{said} " * (length // len(said) + 1))[:length]
    text = reply.text if reply.text is not None else "" if reply.called else said
    called = "".join(json.dumps(call) for call in reply.called)
    wanted = (len(text) + len(called)) // PIECE_LENGTH + 1
    if wanted <= max_tokens:
        return text, wanted, False
    return text[: max_tokens * PIECE_LENGTH], max_tokens, True


def _tokens(call: Call, rng: Random, output_tokens: int, reasoning_tokens: int) -> Tokens:
    """A prompt of a fifth to a third of its bytes, in one of three cases partly from a cache."""
    prompt = max(1, call.body_bytes * rng.randint(20, 33) // 100)
    cached = prompt * rng.randint(20, 80) // 100 if rng.random() < 1 / 3 else 0
    written = (prompt - cached) // 2 if cached and call.provider == "anthropic" else 0
    written_1h = written if rng.random() < 1 / 4 else 0
    return Tokens(
        input_tokens=prompt - cached - written,
        output_tokens=output_tokens,
        cache_read_tokens=cached,
        cache_write_5m_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        reasoning_tokens=reasoning_tokens,
    )


def _cost_usd(call: Call, reply: Reply, tokens: Tokens, prices: Mapping[str, Price]) -> Decimal | None:
    if call.provider == "anthropic" or reply.cost == "absent":
        return None
    if isinstance(reply.cost, Decimal):
        return reply.cost
    price = prices.get(call.model)
    if price is None:
        return None
    paid_in_full = tokens.prompt_tokens - tokens.cache_read_tokens
    return _PER_TOKEN * (
        paid_in_full * price.input
        + tokens.cache_read_tokens * price.cache_read
        + tokens.output_tokens * price.output
    )


def anthropic_body(answer: Answer) -> bytes:
    """A Message: its own words for stopping, cached tokens apart from input_tokens, no cost."""
    message = anthropic_message(answer, list(anthropic_blocks(answer)))
    return json.dumps(message).encode()


def anthropic_message(answer: Answer, content: list[dict[str, object]]) -> dict[str, object]:
    return {
        "id": answer.response_id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": answer.stop_reason,
        "stop_sequence": None,
        "usage": anthropic_usage(answer.tokens),
    }


def anthropic_blocks(answer: Answer) -> Iterator[dict[str, object]]:
    if answer.thinking:
        yield {"type": "thinking", "thinking": answer.thinking, "signature": f"sig_{answer.response_id}"}
    if answer.text or not answer.tool_calls:
        yield {"type": "text", "text": answer.text}
    for call_id, (name, given) in answer.tool_calls.items():
        yield {"type": "tool_use", "id": call_id, "name": name, "input": given}


def anthropic_usage(tokens: Tokens) -> dict[str, object]:
    usage = {
        "input_tokens": tokens.input_tokens,
        "cache_creation_input_tokens": tokens.cache_write_5m_tokens + tokens.cache_write_1h_tokens,
        "cache_read_input_tokens": tokens.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": tokens.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": tokens.cache_write_1h_tokens,
        },
        "output_tokens": tokens.output_tokens,
        "service_tier": "standard",
    }
    if tokens.reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": tokens.reasoning_tokens}
    return usage


def openrouter_body(answer: Answer) -> bytes:
    """A chat completion: prompt_tokens with cached ones, and the cost spelt as an exact number."""
    message: dict[str, object] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.thinking:
        message |= openrouter_reasoning(answer.thinking)
    if answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": call_id,
                "index": index,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(given)},
            }
            for index, (call_id, (name, given)) in enumerate(answer.tool_calls.items())
        ]
    choice = {"index": 0, "message": message, **openrouter_finish(answer.stop_reason), "logprobs": None}
    completion = openrouter_head(answer, "chat.completion") | {"choices": [choice]}
    return with_member(completion, "usage", openrouter_usage(answer)).encode()


def openrouter_head(answer: Answer, kind: str) -> dict[str, object]:
    return {
        "id": answer.response_id,
        "provider": answer.upstream,
        "model": answer.model,
        "object": kind,
        "created": answer.created,
    }


def openrouter_finish(stop_reason: str | None) -> dict[str, object]:
    """The two members that say how it ended; None: it has not yet."""
    finish_reason = _FINISH_REASONS.get(stop_reason, stop_reason) if stop_reason else None
    return {"finish_reason": finish_reason, "native_finish_reason": finish_reason}


def openrouter_reasoning(thinking: str) -> dict[str, object]:
    details = {"type": "reasoning.text", "text": thinking, "index": 0, "format": None}
    return {"reasoning": thinking, "reasoning_details": [details]}


def openrouter_usage(answer: Answer) -> str:
    """As JSON, for the cost is an exact number in it."""
    tokens = answer.tokens
    usage: dict[str, object] = {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.output_tokens,
        "total_tokens": tokens.prompt_tokens + tokens.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cache_read_tokens,
            "cache_write_tokens": tokens.cache_write_5m_tokens + tokens.cache_write_1h_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning_tokens},
    }
    if answer.cost_usd is None:
        return json.dumps(usage)
    return with_member({**usage, "is_byok": False}, "cost", spelt(answer.cost_usd))


def spelt(amount: Decimal) -> str:
    """A decimal as a JSON number: every digit it has, no exponent, no trailing zeros.

    >>> spelt(Decimal("0.0000270"))
    '0.000027'
    """
    digits = format(amount, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def with_member(members: Mapping[str, object], name: str, raw_json: str) -> str:
    """A JSON object with one more member, whose text stands as it is: json.dumps has no decimals."""
    return f"{json.dumps(members)[:-1]}, {json.dumps(name)}: {raw_json}}}"


def error_body(call: Call, reply: Reply, request_id: str) -> bytes:
    """The error body this provider sends for the reply's error, or for its status."""
    word = reply.error or ERROR_OF_STATUS.get(reply.status, "server_error")
    error = error_of(call, word, reply.status, reply.message)
    if call.provider == "anthropic":
        return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
    return json.dumps({"error": error, "user_id": "user_simulated"}).encode()


def error_of(call: Call, word: ErrorWord, status: int, message: str | None) -> dict[str, object]:
    """The member `error` in this provider's words; `message` in place of what it usually says."""
    if call.provider == "anthropic":
        error_type, text = _ANTHROPIC_ERRORS[word]
        error: dict[str, object] = {
            "type": "timeout_error" if status == 504 else error_type,
            "message": message or text.replace("{model}", call.model),
        }
        if word == "spend_limit_reached":
            error["details"] = {"error_code": "enforced_spend_limit_reached"}
        return error
    code, text = _OPENROUTER_ERRORS[word]
    error = {
        "code": status if status >= 400 else code,
        "message": message or text.replace("{model}", call.model),
    }
    if word == "content_filtered":
        error["metadata"] = {
            "reasons": ["violence"],
            "flagged_input": "…",
            "provider_name": "OpenAI",
            "model_slug": call.model,
        }
    elif text == "Provider returned error":
        error["metadata"] = {"provider_name": "DeepInfra", "raw": f"{call.model}: {word.replace('_', ' ')}"}
    return error
