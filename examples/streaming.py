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
        match item:
            case TextDelta(text):
                print(text, end="", flush=True)
            case Restarted(reason, tier, model):  # it broke off: what was shown is void
                print(f"\n--- {reason}: {model} ({tier}) begins anew ---")

response = stream.response  # as route() returns it
print(f"\n\n{response['model']}: {response['usage']['output_tokens']} tokens, {response['latency_s']:.1f} s")
