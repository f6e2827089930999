"""Which model serves a tier: models.toml, over it bughive.toml, over it the caller's catalog."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ledger.settings import TierSetting
from router.errors import InvalidRequest, UnknownTier
from router.tasks import ModelTier

PROVIDERS = ("anthropic", "openrouter")
_MODELS = Path(__file__).with_name("models.toml")

Catalog = Mapping[Any, tuple[str, str]]  # by tier, named by text or as a ModelTier


class Route(NamedTuple):
    """A tier with the model that serves it, under the id its provider's API accepts."""

    tier: str
    model: str
    provider: str


def route_for(tier: str, own: Catalog, settings: Mapping[str, TierSetting]) -> Route:
    """The route of a tier: the caller's own catalog, else bughive.toml, else what ships.

    Raises UnknownTier naming the nearest, InvalidRequest for a provider that there is not.
    """
    catalogs = (own, _pointed(settings), _shipped()) if settings else (own, _shipped())
    for catalog in catalogs:
        if tier in catalog:
            model, provider = catalog[tier]
            if provider not in PROVIDERS:
                raise InvalidRequest(
                    f"tier {tier} names provider {provider!r}; expected {' or '.join(PROVIDERS)}"
                )
            return Route(str(tier), model_id(provider, model), provider)
    raise UnknownTier(str(tier), known_tiers(*catalogs))


def _pointed(settings: Mapping[str, TierSetting]) -> Catalog:
    """The tiers that settings point to a model."""
    return {
        tier: (setting.model, setting.provider)
        for tier, setting in settings.items()
        if setting.model is not None and setting.provider is not None
    }


def known_tiers(*catalogs: Catalog) -> list[str]:
    """All tiers that have a model, in their usual order, the caller's own ones last."""
    names = dict.fromkeys(str(tier) for catalog in catalogs for tier in catalog)
    usual = list(ModelTier)
    return sorted(names, key=lambda name: usual.index(ModelTier(name)) if name in usual else len(usual))


def model_id(provider: str, model: str) -> str:
    """The id the provider's API accepts.

    >>> model_id("anthropic", "anthropic/claude-opus-4-5-20250514")
    'claude-opus-4-5-20251101'
    """
    bare = model.removeprefix("anthropic/") if provider == "anthropic" else model
    return _aliases().get(provider, {}).get(bare, bare)


@cache
def _models() -> Mapping[str, Any]:
    import tomllib  # late: it is slow to load

    return tomllib.loads(_MODELS.read_text("utf-8"))


@cache
def _shipped() -> Catalog:
    return {tier: (row["model"], row["provider"]) for tier, row in _models()["tiers"].items()}


def _aliases() -> Mapping[str, Mapping[str, str]]:
    aliases: Mapping[str, Mapping[str, str]] = _models()["aliases"]
    return aliases
