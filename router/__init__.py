"""Routes each task to the cheapest model that is good enough, and puts every attempt on the books.

with LLMRouter() as router:
    response = router.route(task="analyze_page", messages=[{"role": "user", "content": "..."}])
    print(response["content"], response["cost"])
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ledger.plain import to_json
from ledger.settings import CircuitSetting
from router.errors import (
    BudgetError,
    BudgetExceeded,
    BughiveError,
    InvalidRequest,
    LedgerError,
    MissingKey,
    ProviderError,
    RouteExhausted,
    RouterError,
    SettingsError,
    UnboundedRequest,
    UnknownTask,
    UnknownTier,
    UnpricedModel,
    UnrecordedAnswer,
)
from router.providers.client import AnthropicClient, OpenRouterClient
from router.router import LLMRouter
from router.streams import Restarted, Stream, TextDelta, ThinkingDelta, ToolCallDelta
from router.tasks import TASK_MODEL_MAP, ModelTier
from router.types import ClientResponse, RouteResponse, ToolCall, UsageReport

if TYPE_CHECKING:
    from ledger.tracker import CostTracker

__all__ = [
    "TASK_MODEL_MAP",
    "AnthropicClient",
    "BudgetError",
    "BudgetExceeded",
    "BughiveError",
    "CircuitSetting",
    "ClientResponse",
    "CostTracker",
    "InvalidRequest",
    "LLMRouter",
    "LedgerError",
    "MissingKey",
    "ModelTier",
    "OpenRouterClient",
    "ProviderError",
    "Restarted",
    "RouteExhausted",
    "RouteResponse",
    "RouterError",
    "SettingsError",
    "Stream",
    "TextDelta",
    "ThinkingDelta",
    "ToolCall",
    "ToolCallDelta",
    "UnboundedRequest",
    "UnknownTask",
    "UnknownTier",
    "UnpricedModel",
    "UnrecordedAnswer",
    "UsageReport",
    "to_json",
]

logging.getLogger("router").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name == "CostTracker":
        from ledger.tracker import CostTracker

        return CostTracker
    raise AttributeError(f"module 'router' has no attribute {name!r}")
