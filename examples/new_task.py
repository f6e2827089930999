"""A task of your own, and a tier of your own. Needs OPENROUTER_API_KEY."""

from router import TASK_MODEL_MAP, LLMRouter, ModelTier

TASK_MODEL_MAP["check_accessibility"] = ModelTier.GENERAL  # read at each call
HTML = '<input type="text" placeholder="E-mail"><div onclick="send()">Send</div>'

with LLMRouter() as router:
    response = router.route(
        task="check_accessibility",
        messages=[{"role": "user", "content": f"Name the accessibility faults of: {HTML}"}],
        system="You answer in a list of at most three items.",
        max_tokens=200,
    )
    print(response["model_tier"], "says:", response["content"])

# In bughive.toml a tier is re-pointed for every program in the folder; here, for this router:
with LLMRouter(catalog={ModelTier.GENERAL: ("qwen/qwen-2.5-32b-instruct", "openrouter")}) as router:
    response = router.route("check_accessibility", [{"role": "user", "content": HTML}], max_tokens=50)
    print(response["model"], "says:", response["content"])
