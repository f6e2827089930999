"""What a session cost, in all and by tier. Needs OPENROUTER_API_KEY."""

from router import CostTracker, LLMRouter, to_json

SESSION = "crawl_of_the_shop"
ASK = [{"role": "user", "content": "The basket shows NaN as its total. How bad is that, in one sentence?"}]

with CostTracker() as tracker, LLMRouter(cost_tracker=tracker) as router:
    for task in ("classify_bug", "evaluate_severity", "generate_title"):
        router.route(task, ASK, session_id=SESSION, max_tokens=100)

    print(f"Session cost: ${tracker.get_session_cost(SESSION):.6f}")
    for tier, stats in tracker.get_breakdown(SESSION).items():
        print(f"{tier}: ${stats['cost']:.6f} in {stats['requests']} requests")
    print(tracker.get_cost_summary(SESSION))
    print(to_json(tracker.get_breakdown(SESSION)))  # money as exact strings
