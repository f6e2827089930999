"""A tool loop: the model asks for tools until it has its answer. Needs ANTHROPIC_API_KEY."""

from typing import Any

from router import LLMRouter, to_json

TOOLS = [
    {
        "name": "look_at",
        "description": "The text and state of the first element that a CSS selector finds.",
        "input_schema": {
            "type": "object",
            "properties": {"selector": {"type": "string"}},
            "required": ["selector"],
        },
    }
]


def look_at(selector: str) -> dict[str, Any]:
    return {"selector": selector, "text": "Sign in", "enabled": False}


messages: list[dict[str, Any]] = [{"role": "user", "content": "Is the button of the login form enabled?"}]
with LLMRouter() as router:
    response = router.route("plan_crawl_strategy", messages, tools=TOOLS, max_tokens=500)
    while (calls := response["tool_calls"]) and len(messages) < 20:
        messages.append({"role": "assistant", "content": response["content"], "tool_calls": calls})
        for call in calls:
            print("tool:", call["name"], call["input"])
            result = to_json(look_at(**(call["input"] or {})))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        response = router.route("plan_crawl_strategy", messages, tools=TOOLS, max_tokens=500)

print(response["content"])
