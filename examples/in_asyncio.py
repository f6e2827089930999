"""Calls side by side in asyncio, each in a thread of its own. Needs OPENROUTER_API_KEY."""

import asyncio

from router import LLMRouter

BUGS = [
    "The basket's total is NaN.",
    "The logo is blurred on phones.",
    "Signing out signs in as someone else.",
]


async def main() -> None:
    with LLMRouter() as router:
        responses = await asyncio.gather(
            *(
                asyncio.to_thread(
                    router.route,
                    task="generate_title",
                    messages=[{"role": "user", "content": f"A ticket's title for: {bug}"}],
                    session_id="asyncio",
                    max_tokens=30,
                )
                for bug in BUGS
            )
        )
        for bug, response in zip(BUGS, responses, strict=True):
            print(f"{bug} → {response['content']}")
        print(await asyncio.to_thread(router.tracker.get_cost_summary, "asyncio"))


asyncio.run(main())
