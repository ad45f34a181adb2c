"""JEPA4Rec and the sequential recommenders it is compared with, as a plug-in of RecBole."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "JEPA4Rec", "compare", "find_model", "load", "run", "search"]

from recbole_jepa4rec.config.registry import find_model
from recbole_jepa4rec.plugin import register

if TYPE_CHECKING:
    from recbole_jepa4rec.api import compare, run, search
    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.model.jepa4rec import JEPA4Rec
    from recbole_jepa4rec.runner.recommender import load

register()

_LAZY = {
    "Config": "recbole_jepa4rec.config.config",
    "JEPA4Rec": "recbole_jepa4rec.model.jepa4rec",
    "load": "recbole_jepa4rec.runner.recommender",
    **dict.fromkeys(("compare", "run", "search"), "recbole_jepa4rec.api"),
}


def __getattr__(name: str) -> Any:
    """Import what is public when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion offers."""
    return sorted({*globals(), *__all__})
