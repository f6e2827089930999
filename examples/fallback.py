"""A tier whose model is gone, and the tier that answers instead. Needs both keys."""

from router import LLMRouter, ModelTier, RouteExhausted

GONE = ("claude-that-never-was", "anthropic")
ASK = [{"role": "user", "content": "A checkout button does nothing. Critical bug or not, in one sentence?"}]

with LLMRouter(catalog={ModelTier.ORCHESTRATOR: GONE}) as router:
    response = router.route_with_fallback(
        task="validate_critical_bug",
        messages=ASK,
        fallback_tier=ModelTier.FAST,
        max_tokens=100,
    )
    if response["fallback_used"]:
        print(f"answered by {response['model_tier']}, in attempt {response['attempts']}:")
    print(response["content"])

    try:
        router.route("validate_critical_bug", ASK, max_tokens=100)  # the same without a fallback
    except RouteExhausted as exhausted:
        print("no answer:", [(attempt.model, attempt.error.error_type) for attempt in exhausted.attempts])
