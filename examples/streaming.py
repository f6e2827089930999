"""An answer shown while it is written. Needs OPENROUTER_API_KEY."""

from router import LLMRouter, ModelTier, Restarted, TextDelta

QUESTION = "Write a short test plan for a login form."

with (
    LLMRouter() as router,
    router.stream(
        task="analyze_page",
        messages=[{"role": "user", "content": QUESTION}],
        fallback_tier=ModelTier.FAST,
        session_id="examples",
        max_tokens=600,
    ) as stream,
):
    for item in stream:
        if isinstance(item, TextDelta):
            print(item.text, end="", flush=True)
        elif isinstance(item, Restarted):  # it broke off: what was shown is void
            print(f"\n--- {item.reason}: {item.model} ({item.tier}) begins anew ---")

response = stream.response  # as route() returns it
print(f"\n\n{response['model']}: {response['usage']['output_tokens']} tokens, {response['latency_s']:.1f} s")
