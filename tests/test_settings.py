"""The typed settings: the yaml files say the same, and what a field or a rule refuses."""

import os
import re
import sys
from pathlib import Path

import pytest
import recbole
import yaml
from pydantic import ValidationError
from recbole.config import Config as RecBoleConfig

from recbole_jepa4rec.base.yaml_files import Loader, find_properties
from recbole_jepa4rec.config.language_model_settings import LlamaRecSettings
from recbole_jepa4rec.config.registry import SETTINGS
from recbole_jepa4rec.config.run_settings import RecBoleSettings, RunSettings
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings, RecFormerSettings
from recbole_jepa4rec.config.settings import Settings
from recbole_jepa4rec.config.vector_settings import UniSRecSettings, VQRecSettings

FILES = {"overall": RunSettings, **{f"model/{name}": kind for name, kind in SETTINGS.items()}}
KEY_LINE = re.compile(r"^(?P<key>\w+):.*# \((?P<type>\w+)\) (?P<meaning>.*)$", re.MULTILINE)


def own_keys(kind):
    """Keys that a class adds to those of the classes under it, or gives another default."""
    floor = RecBoleSettings if kind is RunSettings else RunSettings
    above = [e for e in kind.__mro__ if issubclass(e, Settings) and e not in floor.__mro__]
    named = {key for each in above for key in each.__annotations__}
    return {key: value for key, value in kind.keys().items() if key in named}


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_the_class_says(name):
    text = (find_properties() / f"{name}.yaml").read_text(encoding="utf-8")
    keys = own_keys(FILES[name])
    content = yaml.load(text, Loader)
    assert content == {key: said.default for key, said in keys.items()}
    lines = {each["key"]: each for each in KEY_LINE.finditer(text)}
    for key, said in keys.items():
        assert lines[key]["type"] == said.type, key
        assert lines[key]["meaning"] == said.meaning, key


def test_every_file_of_a_model_has_a_class():
    files = {file.stem for file in find_properties().glob("model/*.yaml")}
    assert files == set(SETTINGS)


@pytest.mark.parametrize(
    "file", sorted(find_properties().glob("preset/*-*.yaml")), ids=lambda file: file.stem
)
def test_a_preset_suits_its_models(file):
    with_head = [name for name, kind in SETTINGS.items() if "history_bias" in kind.model_fields]
    is_head = file.stem.endswith("ranking-head")
    own = [name for name in SETTINGS if name.lower() == file.stem.split("-")[0]]
    content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    for name in with_head if is_head else own:
        assert set(content) <= set(SETTINGS[name].model_fields)
        SETTINGS[name].of(content)
    assert len(with_head) >= 5 if is_head else len(own) == 1


def test_recboles_defaults_are_recboles():
    folder = Path(recbole.__file__).parent / "properties"
    theirs = {}
    for name in ("overall", "dataset/sample"):
        theirs |= yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    theirs["train_neg_sample_args"] = None  # what a loss by cross-entropy needs
    for key, said in RecBoleSettings.keys().items():
        assert said.default == theirs[key], key


@pytest.mark.parametrize("name", SETTINGS)
def test_recboles_own_config_gives_them_as_well(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    given = {"metrics": ["NDCG", "MRR"], "train_neg_sample_args": None}
    config = RecBoleConfig(name, "ml-100k", config_dict=given)
    kind = SETTINGS[name]
    settings = kind.of(config)
    assert settings.metrics == ["NDCG", "MRR"]
    assert settings.epochs == config["epochs"]
    assert settings.nproc == 1  # RecBole has no such key


def test_they_are_typed_values():
    settings = JEPA4RecSettings.of({"temperature": 1, "metrics": ("Recall", "NDCG")})
    assert (settings.temperature, type(settings.temperature)) == (1.0, float)
    assert settings.metrics == ["Recall", "NDCG"]
    assert settings == JEPA4RecSettings(temperature=1.0, metrics=["Recall", "NDCG"])
    with pytest.raises(ValidationError):
        settings.temperature = 2.0
    with pytest.raises(ValidationError):
        JEPA4RecSettings(temprature=1.0)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (RunSettings, {"nproc": 0}, "nproc 0 must be a whole number from 1"),
        (RunSettings, {"nproc": True}, "nproc True must be a whole number from 1"),
        (RunSettings, {"port": "x"}, "port 'x' must be null or a whole number from 1"),
        (RunSettings, {"ip": 5}, "ip 5 must be a text"),
        (RunSettings, {"filter_history": 2}, "filter_history 2 must be True or False"),
        (RunSettings, {"max_train_seconds": 0}, "max_train_seconds 0 must be null or a number abo"),
        (RunSettings, {"learning_rate": float("nan")}, "learning_rate nan must be a number from 0"),
        (RunSettings, {"topk": [5, 0]}, "topk [5, 0] must be a whole number from 1 or a list of"),
        (RunSettings, {"metrics": []}, "metrics [] must be a name or a list of names"),
        (RunSettings, {"metrics": ["AUC"]}, "metric 'auc' is unknown (allowed: recall, hit, ndcg,"),
        (
            RunSettings,
            {"metrics": ["NDCG", "Coverage"], "valid_metric": "Coverage@10"},
            "valid_metric 'Coverage@10' is not measured, or selects no model (allowed: ndcg@10, mr",
        ),
        (VQRecSettings, {"code_values": 1}, "code_values 1 must be a whole number from 2"),
        (JEPA4RecSettings, {"dropout": 1}, "dropout 1 must be a number from 0 to below 1"),
        (
            JEPA4RecSettings,
            {"ema_momentum": 1.1},
            "ema_momentum 1.1 must be null or a number from 0 to 1",
        ),
        (JEPA4RecSettings, {"temperature": 0}, "temperature 0 must be a number above 0"),
        (
            JEPA4RecSettings,
            {"attention_window": 7},
            "attention_window 7 must be null or an even whole number from 2",
        ),
        (JEPA4RecSettings, {"sequence_pass": "x"}, "sequence_pass is 'x'; allowed: masked, clean"),
        (
            JEPA4RecSettings,
            {"attention_window": 64},
            "attention_window is 64; allowed with training_targets='all_prefixes': null",
        ),
        (
            JEPA4RecSettings,
            {"item_encoder": "target"},
            "items_per_step is 2048; allowed with item_encoder='target', which gets no gradient: 0",
        ),
        (
            RecFormerSettings,
            {"pretrain_earliest_target": 0.5},
            "pretrain_earliest_target is 0.5; allowed with training_targets='random'",
        ),
        (
            JEPA4RecSettings,
            {"finetune_empty_histories": True},
            "finetune_empty_histories is True; allowed with training_targets='random'",
        ),
        (
            RecFormerSettings,
            {"num_heads": 3},
            "hidden_size=64 is no multiple of num_heads=3",
        ),
        (
            RecFormerSettings,
            {"checkpoint": "a", "encoder_checkpoint": "b"},
            "checkpoint='a' and encoder_checkpoint='b' are both set; allowed: one of them",
        ),
        (
            RecFormerSettings,
            {"enable_amp": True},
            "enable_amp is RecBole's; allowed here: precision=bf16 or fp16",
        ),
        (VQRecSettings, {"n_heads": 3}, "hidden_size=64 is no multiple of n_heads=3"),
        (
            UniSRecSettings,
            {"fix_encoder": True, "train_stage": "finetune"},
            "fix_encoder is True without pre-training; allowed with train_stage=both, a checkpoint",
        ),
        (LlamaRecSettings, {"train_stage": "both"}, "train_stage is 'both'; allowed: finetune"),
        (
            LlamaRecSettings,
            {"num_candidates": 27},
            "num_candidates 27 must be a whole number from 2 to 26",
        ),
        (LlamaRecSettings, {"retriever_settings": 3}, "retriever_settings 3 must be a mapping"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(kind, given, message):
    with pytest.raises(ValueError, match=r"must|allowed|multiple") as error:
        kind.of(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_checkpoint_s_shape_is_not_known_here():
    settings = RecFormerSettings.of({"num_heads": 12, "encoder_checkpoint": "bert-base-uncased"})
    assert settings.num_heads == 12


@pytest.mark.parametrize(
    ("given", "stage", "pretrains"),
    [
        ({}, "both", True),
        ({"pretrain_epochs": 0}, "both", False),
        ({"checkpoint": "a"}, "finetune", False),
        ({"checkpoint": "a", "train_stage": "pretrain"}, "pretrain", True),
        ({"train_stage": "finetune"}, "finetune", False),
    ],
)
def test_a_checkpoint_is_pre_trained(given, stage, pretrains):
    settings = VQRecSettings.of(given)
    assert (settings.stage, settings.pretrains) == (stage, pretrains)
