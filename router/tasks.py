"""Which tier serves which task.

`TASK_MODEL_MAP` is read at each `route()`: assign to it to add a task or move one.
"""

from __future__ import annotations

from enum import StrEnum


class ModelTier(StrEnum):
    """The five kinds of work, dearest model first."""

    ORCHESTRATOR = "ORCHESTRATOR"
    REASONING = "REASONING"
    CODING = "CODING"
    GENERAL = "GENERAL"
    FAST = "FAST"


TASK_MODEL_MAP: dict[str, ModelTier] = {
    "plan_crawl_strategy": ModelTier.ORCHESTRATOR,
    "validate_critical_bug": ModelTier.ORCHESTRATOR,
    "quality_gate": ModelTier.ORCHESTRATOR,
    "orchestrate_session": ModelTier.ORCHESTRATOR,
    "analyze_page": ModelTier.REASONING,
    "classify_bug": ModelTier.REASONING,
    "deduplicate_bugs": ModelTier.REASONING,
    "evaluate_severity": ModelTier.REASONING,
    "generate_edge_cases": ModelTier.CODING,
    "propose_fix": ModelTier.CODING,
    "analyze_stack_trace": ModelTier.CODING,
    "review_code": ModelTier.CODING,
    "extract_navigation": ModelTier.GENERAL,
    "parse_console_logs": ModelTier.GENERAL,
    "identify_elements": ModelTier.GENERAL,
    "extract_forms": ModelTier.GENERAL,
    "format_ticket": ModelTier.FAST,
    "summarize_session": ModelTier.FAST,
    "generate_title": ModelTier.FAST,
    "categorize_simple": ModelTier.FAST,
}
