"""One task, answered by the model of its tier. Needs OPENROUTER_API_KEY."""

from router import LLMRouter

QUESTION = "A login page has two inputs and a button. Name the three tests you would run first."

with LLMRouter() as router:
    response = router.route(
        task="analyze_page",  # REASONING, as TASK_MODEL_MAP says
        messages=[{"role": "user", "content": QUESTION}],
        session_id="examples",
        max_tokens=300,
    )

print(response["content"])
print(f"\n{response['model']} ({response['model_tier']}), {response['usage']['output_tokens']} tokens")
print(f"Cost: ${response['cost']:.6f}" if response["cost"] is not None else "Cost: not known")
