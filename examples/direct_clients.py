"""The clients without a router, on the books by their tracker. Needs both keys."""

from router import AnthropicClient, CostTracker, OpenRouterClient, ProviderError

ASK = [{"role": "user", "content": "Which page of a web shop would you test first, in five words?"}]

with (
    CostTracker() as tracker,
    AnthropicClient(max_retries=3, timeout=60.0, tracker=tracker) as anthropic,
    OpenRouterClient(tracker=tracker) as openrouter,
):
    planned = anthropic.create_message(
        model="anthropic/claude-opus-4-5-20250514", messages=ASK, max_tokens=50, session_id="direct"
    )
    print(planned["content"], planned["usage"])

    analyzed = openrouter.create_completion(
        model="deepseek/deepseek-chat", messages=ASK, max_tokens=50, session_id="direct"
    )
    print(analyzed["content"], analyzed["cost"])

    try:
        openrouter.create_completion(model="nobody/no-such-model", messages=ASK, max_tokens=50)
    except ProviderError as error:
        print("no answer:", error.error_type, error.http_status)

    print(tracker.get_cost_summary("direct"))
