"""The model of a run, or one line that says why RecBole's cannot be made."""

from __future__ import annotations

from typing import Any

from recbole_jepa4rec.config.config import Config


def build_model(config: Config, dataset: Any) -> Any:
    """The model on its device.

    Raises:
        ValueError: if RecBole's model looks for a column that is not loaded, or does not know the
            value of a setting.
    """
    try:
        return config.model_class(config, dataset).to(config["device"])
    except KeyError as error:
        _explain(error, config)
        raise
    except (NotImplementedError, SystemExit) as error:  # RecBole's models on a loss they lack
        if isinstance(error, SystemExit) and error.code:  # told to end
            raise
        raise ValueError(
            f"loss_type {config['loss_type']!r} is unknown to model {config['model']!r}"
        ) from error


def _explain(error: KeyError, config: Config) -> None:
    """Say which column or which setting a model looked up in vain, where that can be known."""
    settings, name = config.final_config_dict, error.args[0]
    columns = [value for key, value in settings.items() if key.endswith("_FIELD")]
    if name in {x for c in columns if c for x in ([c] if isinstance(c, str) else c)}:
        raise ValueError(
            f"model {config['model']!r} needs {error}, which data set {config['dataset']!r} lacks "
            "(load_col names the columns that are loaded)"
        ) from error
    keys = [key for key, value in settings.items() if isinstance(value, str) and value == name]
    if keys:
        raise ValueError(f"{keys[0]} {error} is unknown to model {config['model']!r}") from error
