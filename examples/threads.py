"""One router for many threads. Needs OPENROUTER_API_KEY."""

from concurrent.futures import ThreadPoolExecutor

from router import LLMRouter

LOGS = [
    "TypeError: basket.items is undefined (checkout.js:41)",
    "GET /fonts/inter.woff2 404",
    "Mixed Content: the page requested an insecure image",
    "Uncaught (in promise) AbortError",
]

with LLMRouter() as router, ThreadPoolExecutor(max_workers=4) as pool:

    def explained(line: str) -> str:
        ask = [{"role": "user", "content": f"In one sentence, what does this console line say? {line}"}]
        return router.route("parse_console_logs", ask, session_id="threads", max_tokens=80)["content"]

    for line, words in zip(LOGS, pool.map(explained, LOGS), strict=True):
        print(f"{line}\n  {words}")
    print(router.tracker.get_cost_summary("threads"))
