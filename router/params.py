"""`**params`: one table of what each provider is told of a parameter. Pure.

    passed        under its own name, as it is
    left out      this provider has no word for it; logged
    Translated    under the provider's own word; what of it is left out or only nearly told is logged

Where a caller gives both providers' words for one thing (`thinking` and `reasoning`), each provider
is told its own. A parameter that is not in the table is passed, to whichever provider is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from router.errors import InvalidRequest
from router.tools import anthropic_tool_choice, openai_tool_choice

_log = logging.getLogger("router")


class Asked(NamedTuple):
    """The parameters that were given, and what else of a call their translation depends on."""

    params: Mapping[str, Any]
    max_tokens: int
    has_tools: bool


class Told(NamedTuple):
    """Members of the body, what is left out, and what is told only nearly: each a few words for the log."""

    body: Mapping[str, Any] = {}
    left_out: tuple[str, ...] = ()
    nearly: tuple[str, ...] = ()


_NOTHING = Told()


class Translated(NamedTuple):
    """`unless`: the provider's own words, which win where they are given too."""

    says: str
    by: Callable[[Any, Asked], Told]
    unless: tuple[str, ...] = ()


Rule = Literal["passed", "left out"] | Translated


class Param(NamedTuple):
    """A row of the table."""

    name: str
    anthropic: Rule
    openrouter: Rule


def told(provider: Literal["anthropic", "openrouter"], asked: Asked) -> Told:
    """What a provider is told of the parameters given; one that is None counts as not given."""
    given = {name: value for name, value in asked.params.items() if value is not None}
    if not given:
        return _NOTHING
    rules = {name: _rule(provider, name, asked) for name in given}
    asked = asked._replace(params=given)
    body = {name: value for name, value in given.items() if rules[name] == "passed"}
    left_out = [name for name, rule in rules.items() if rule == "left out"]
    nearly: list[str] = []
    for name, rule in rules.items():
        if isinstance(rule, Translated) and not any(word in given for word in rule.unless):
            part = rule.by(given[name], asked)
            for key, member in part.body.items():  # what the provider was told in its own words stands
                body[key] = {**member, **body[key]} if isinstance(body.get(key), Mapping) else member
            left_out += part.left_out
            nearly += part.nearly
    return Told(body, tuple(left_out), tuple(nearly))


def log_changes(provider: str, said: Told, tools_left_out: Sequence[str]) -> None:
    """Say what a provider is not told, or only nearly: nothing of a call is changed in silence."""
    left_out = [*said.left_out, *tools_left_out]
    if left_out:
        _log.warning("%s knows nothing of %s: left out", provider, ", ".join(left_out))
    for words in said.nearly:
        _log.warning("%s is told only nearly: %s", provider, words)


def _rule(provider: str, name: str, asked: Asked) -> Rule:
    if name in _OF_TOOLS and not asked.has_tools:
        return "left out"
    return _RULES[provider].get(name, "passed")


# Stopping, tools, who asks --------------------------------------------------------------------


def _stop_sequences(stop: Any, _: Asked) -> Told:
    if not isinstance(stop, (str, list, tuple)):
        raise InvalidRequest(f"stop must be text or a list of texts, not {stop!r:.60}")
    words = [stop] if isinstance(stop, str) else list(stop)
    kept = [word for word in words if str(word).strip()]
    blank = tuple(f"stop {word!r}" for word in words if not str(word).strip())
    return Told({"stop_sequences": kept} if kept else {}, blank)


def _stop(stop_sequences: Any, _: Asked) -> Told:
    return Told({"stop": stop_sequences})


def _choice_for_anthropic(choice: Any, asked: Asked) -> Told:
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
        chosen = dict(anthropic_tool_choice(str(mode or "auto")))
        nearly: tuple[str, ...] = (f"tool_choice allowed_tools as {chosen['type']!r} of all tools",)
    else:
        chosen, nearly = dict(anthropic_tool_choice(choice)), ()
    if asked.params.get("parallel_tool_calls") is False and chosen.get("type") != "none":
        chosen.setdefault("disable_parallel_tool_use", True)
    return Told({"tool_choice": chosen}, nearly=nearly)


def _one_tool_at_a_time(parallel: Any, asked: Asked) -> Told:
    if parallel or "tool_choice" in asked.params:  # true is how it is; the choice says the rest
        return Told()
    return Told({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}})


def _choice_for_openrouter(choice: Any, asked: Asked) -> Told:
    body: dict[str, Any] = {"tool_choice": openai_tool_choice(choice)}
    one_at_a_time = isinstance(choice, Mapping) and choice.get("disable_parallel_tool_use") is True
    if one_at_a_time and "parallel_tool_calls" not in asked.params:
        body["parallel_tool_calls"] = False
    return Told(body)


def _user_id(user: Any, _: Asked) -> Told:
    return Told({"metadata": {"user_id": user}})


def _metadata_for_anthropic(metadata: Any, asked: Asked) -> Told:
    if not isinstance(metadata, Mapping):
        return Told(left_out=("metadata",))
    others = tuple(f"metadata.{key}" for key in metadata if key != "user_id")
    user = metadata.get("user_id", asked.params.get("user"))
    return Told({} if user is None else {"metadata": {"user_id": user}}, others)


def _metadata_for_openrouter(metadata: Any, asked: Asked) -> Told:
    if not isinstance(metadata, Mapping):
        return Told({"metadata": metadata})
    rest = {key: value for key, value in metadata.items() if key != "user_id"}
    body: dict[str, Any] = {"metadata": rest} if rest else {}
    if "user_id" in metadata and "user" not in asked.params:
        body["user"] = metadata["user_id"]
    return Told(body)


def _tier_for_anthropic(tier: Any, _: Asked) -> Told:
    word = {"default": "standard_only", "standard_only": "standard_only", "auto": "auto"}.get(str(tier))
    return Told({"service_tier": word}) if word else Told(left_out=(f"service_tier {tier!r}",))


def _tier_for_openrouter(tier: Any, _: Asked) -> Told:
    return Told({"service_tier": "default" if tier == "standard_only" else tier})


# Thinking -------------------------------------------------------------------------------------

_LEAST_BUDGET = 1024  # tokens, the least Anthropic takes
_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95, "max": 0.95}
_FORCED = ("any", "tool")


def _thinking(reasoning: Any, asked: Asked) -> Told:
    """OpenRouter's `reasoning` as a budget of tokens: an effort is that share of max_tokens."""
    wanted = reasoning if isinstance(reasoning, Mapping) else {}
    effort = wanted.get("effort")
    if wanted.get("enabled") is False or effort == "none":
        return Told({"thinking": {"type": "disabled"}})
    if not wanted:
        return Told(left_out=("reasoning",))
    choice = asked.params.get("tool_choice")
    if choice is not None and asked.has_tools and anthropic_tool_choice(choice).get("type") in _FORCED:
        return Told(left_out=("reasoning beside a forced tool_choice",))
    tokens = wanted.get("max_tokens")
    exact = isinstance(tokens, int) and _LEAST_BUDGET <= tokens < asked.max_tokens
    if not isinstance(tokens, int):
        tokens = int(asked.max_tokens * _SHARES.get(str(effort), _SHARES["medium"]))
    budget = min(max(tokens, _LEAST_BUDGET), asked.max_tokens - 1)
    if budget < _LEAST_BUDGET:
        return Told(left_out=(f"reasoning within max_tokens={asked.max_tokens}",))
    thinking: dict[str, Any] = {"type": "enabled", "budget_tokens": budget}
    if wanted.get("exclude") is True:
        thinking["display"] = "omitted"
    nearly = () if exact else (f"reasoning {dict(wanted)} as a thinking budget of {budget} tokens",)
    return Told({"thinking": thinking}, nearly=nearly)


def _thinking_by_effort(effort: Any, asked: Asked) -> Told:
    return _thinking({"effort": effort}, asked)


def _reasoning(thinking: Any, _: Asked) -> Told:
    wanted = thinking if isinstance(thinking, Mapping) else {}
    hidden = {"exclude": True} if wanted.get("display") == "omitted" else {}
    match wanted.get("type"):
        case "disabled":
            return Told({"reasoning": {"effort": "none"}})
        case "enabled" if "budget_tokens" in wanted:
            return Told({"reasoning": {"max_tokens": wanted["budget_tokens"], **hidden}})
        case "enabled" | "adaptive" | "between_tools" as kind:
            nearly = (f"thinking of type {kind!r} as reasoning at its default effort",)
            return Told({"reasoning": {"enabled": True, **hidden}}, nearly=nearly)
    return Told(left_out=("thinking",))


def _temperature(temperature: Any, asked: Asked) -> Told:
    if temperature != 1 and _thinks(asked):
        return Told(left_out=("temperature beside reasoning",))
    if isinstance(temperature, (int, float)) and temperature > 1:
        return Told({"temperature": 1.0}, nearly=(f"temperature {temperature} as 1, its highest",))
    return Told({"temperature": temperature})


def _top_p(top_p: Any, asked: Asked) -> Told:
    return Told(left_out=("top_p beside reasoning",)) if _thinks(asked) else Told({"top_p": top_p})


def _top_k(top_k: Any, asked: Asked) -> Told:
    return Told(left_out=("top_k beside reasoning",)) if _thinks(asked) else Told({"top_k": top_k})


def _thinks(asked: Asked) -> bool:
    """Whether thinking is on by OpenRouter's words: Anthropic refuses other sampling beside it."""
    if "thinking" in asked.params or not any(word in asked.params for word in _REASONING):
        return False
    reasoning = asked.params.get("reasoning", {"effort": asked.params.get("reasoning_effort")})
    return "budget_tokens" in _thinking(reasoning, asked).body.get("thinking", {})


# The form of the answer -----------------------------------------------------------------------


def _output_config(response_format: Any, _: Asked) -> Told:
    wanted = response_format if isinstance(response_format, Mapping) else {}
    described = wanted.get("json_schema")
    if wanted.get("type") == "text":
        return Told()
    if isinstance(described, Mapping) and described.get("strict") is True and "schema" in described:
        return Told({"output_config": {"format": {"type": "json_schema", "schema": described["schema"]}}})
    return Told(left_out=("response_format that is no strict json_schema",))


def _response_format(output_config: Any, asked: Asked) -> Told:
    wanted = output_config if isinstance(output_config, Mapping) else {}
    left_out = tuple(f"output_config.{key}" for key in wanted if key != "format")
    format_ = wanted.get("format")
    if not isinstance(format_, Mapping) or "response_format" in asked.params:
        return Told(left_out=left_out if isinstance(output_config, Mapping) else ("output_config",))
    schema = {"name": "answer", "strict": True, "schema": format_.get("schema")}
    return Told({"response_format": {"type": "json_schema", "json_schema": schema}}, left_out)


# The table ------------------------------------------------------------------------------------

_OF_TOOLS = ("tool_choice", "parallel_tool_calls")  # both providers refuse them without tools
_REASONING = ("reasoning", "reasoning_effort")

PARAMS = (
    Param(
        "temperature",
        Translated("passed; above 1 nearly, as 1; left out beside `reasoning`", _temperature),
        "passed",
    ),
    Param("top_p", Translated("passed; left out beside `reasoning`", _top_p), "passed"),
    Param("top_k", Translated("passed; left out beside `reasoning`", _top_k), "passed"),
    Param("stop_sequences", "passed", Translated("`stop`", _stop, ("stop",))),
    Param(
        "stop",
        Translated("`stop_sequences`; blank ones are left out", _stop_sequences, ("stop_sequences",)),
        "passed",
    ),
    Param(
        "tool_choice",
        Translated("in Anthropic's words; `allowed_tools` nearly, as any tool", _choice_for_anthropic),
        Translated(
            "in OpenAI's words; `disable_parallel_tool_use` as `parallel_tool_calls`", _choice_for_openrouter
        ),
    ),
    Param(
        "parallel_tool_calls",
        Translated("`tool_choice.disable_parallel_tool_use`", _one_tool_at_a_time),
        "passed",
    ),
    Param(
        "thinking",
        "passed",
        Translated(
            "`reasoning`: a budget as `max_tokens`, disabled as effort none, adaptive nearly, as enabled",
            _reasoning,
            _REASONING,
        ),
    ),
    Param(
        "reasoning",
        Translated(
            "`thinking`: `max_tokens` as the budget, from 1,024 and below the call's `max_tokens`; an effort"
            " nearly, as a share of them; left out where there is no room, or a tool is forced",
            _thinking,
            ("thinking",),
        ),
        "passed",
    ),
    Param(
        "reasoning_effort",
        Translated(
            "`thinking`, nearly, as `reasoning.effort`", _thinking_by_effort, ("thinking", "reasoning")
        ),
        "passed",
    ),
    Param(
        "metadata",
        Translated("`user_id` alone; the rest is left out", _metadata_for_anthropic),
        Translated("`user_id` as `user`; the rest passed", _metadata_for_openrouter),
    ),
    Param("user", Translated("`metadata.user_id`", _user_id, ("metadata",)), "passed"),
    Param(
        "service_tier",
        Translated("passed; `default` as `standard_only`; other tiers are left out", _tier_for_anthropic),
        Translated("passed; `standard_only` as `default`", _tier_for_openrouter),
    ),
    Param(
        "response_format",
        Translated("`output_config.format`, where it is a strict json_schema; else left out", _output_config),
        "passed",
    ),
    Param(
        "output_config",
        "passed",
        Translated("`format` as `response_format`; the rest is left out", _response_format),
    ),
    Param("cache_control", "passed", "passed"),
    *(
        Param(name, "left out", "passed")
        for name in (
            *("seed", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_p", "top_a"),
            *("logit_bias", "logprobs", "top_logprobs", "n", "max_completion_tokens", "verbosity"),
            *("include_reasoning", "modalities", "prediction", "web_search_options", "session_id"),
            *("models", "route", "provider", "plugins", "transforms", "usage"),
        )
    ),
    *(
        Param(name, "passed", "left out")
        for name in (
            "betas",
            "container",
            "context_management",
            "diagnostics",
            "inference_geo",
            "mcp_servers",
            "speed",
        )
    ),
)
_RULES: Mapping[str, Mapping[str, Rule]] = {
    "anthropic": {param.name: param.anthropic for param in PARAMS},
    "openrouter": {param.name: param.openrouter for param in PARAMS},
}
