"""JEPA4Rec and the sequential recommenders it is compared with, as a plug-in of RecBole."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Config", "JEPA4Rec", "find_model", "load", "run"]

from recbole_jepa4rec.config.registry import find_model
from recbole_jepa4rec.plugin import register

register()

_LAZY = {
    "Config": "recbole_jepa4rec.config.config",
    "JEPA4Rec": "recbole_jepa4rec.model.jepa4rec",
    "load": "recbole_jepa4rec.runner.recommender",
    "run": "recbole_jepa4rec.runner.quick_start",
}


def __getattr__(name: str) -> Any:
    """Import what is public when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
