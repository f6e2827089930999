"""A local HTTP server that answers as Anthropic and as OpenRouter, with scripted faults and a seed.

    with Simulator(seed=7) as sim:
        sim.script("deepseek/deepseek-chat", rate_limited(retry_after=1), Reply(text="done"))
        …  clients get base_url=sim.anthropic_url and base_url=sim.openrouter_url
        sim.log                                   every call, with the tokens and costs it was told

A call with "stream": true gets the same answer as an event stream, or one that goes wrong on its way:
stalled(after=3), cut_in_stream(after=3), error_in_stream(after=0), …

With tls=, an ssl.SSLContext that has a certificate, it speaks https.

As a process, for benchmarks: `python -m router.simulator --port 0 --seed 7`.
"""

from router.simulator.replies import (
    BUGHIVE_PRICES,
    Broken,
    Price,
    Reply,
    Tokens,
    ToolCall,
    authentication_failed,
    content_filtered,
    context_length_exceeded,
    cut,
    cut_in_stream,
    ended_early,
    endless,
    error_in_answer,
    error_in_stream,
    event_stream,
    gzip_bomb,
    insufficient_credits,
    invalid_request,
    malformed_chunk,
    not_found,
    overloaded,
    rate_limited,
    redirect,
    reset,
    server_error,
    silent,
    spend_limit_reached,
    stalled,
    truncated_gzip,
    unreadable,
    without_done,
)
from router.simulator.server import Served, Simulator

__all__ = [
    "BUGHIVE_PRICES",
    "Broken",
    "Price",
    "Reply",
    "Served",
    "Simulator",
    "Tokens",
    "ToolCall",
    "authentication_failed",
    "content_filtered",
    "context_length_exceeded",
    "cut",
    "cut_in_stream",
    "ended_early",
    "endless",
    "error_in_answer",
    "error_in_stream",
    "event_stream",
    "gzip_bomb",
    "insufficient_credits",
    "invalid_request",
    "malformed_chunk",
    "not_found",
    "overloaded",
    "rate_limited",
    "redirect",
    "reset",
    "server_error",
    "silent",
    "spend_limit_reached",
    "stalled",
    "truncated_gzip",
    "unreadable",
    "without_done",
]
