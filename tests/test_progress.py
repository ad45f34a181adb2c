"""What a run says meanwhile: lines where no bar is seen, and the same curves of every model."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_jepa4rec.base.progress import Pulse
from recbole_jepa4rec.runner.quick_start import run
from tests import test_contract as contracts
from tests.conftest import TINY


class TestPulse:
    @pytest.fixture
    def beats(self):
        said, now = [], SimpleNamespace(seconds=0)
        pulse = Pulse(said.append, clock=lambda: now.seconds)

        def beat(seconds, done):
            now.seconds = seconds
            pulse.beat("epoch 3", done, 12000, "batches")
            return said

        return beat

    def test_a_line_every_half_minute(self, beats):
        for seconds in range(0, 91):
            said = beats(seconds, 100 * seconds)
        assert said == [f"epoch 3: {n:,} of 12,000 batches" for n in (3000, 6000, 9000)]

    def test_none_where_a_bar_moves(self, beats, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert beats(99, 1) == []


def tags(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {*events.Tags()["scalars"]}


def test_every_model_has_the_same_curves(toy, tmp_path, caplog):
    found = {}
    caplog.set_level(logging.INFO)
    ours = contracts.TestJEPA4Rec.settings
    for model, settings in {"SASRec": TINY, "S3Rec": TINY, "JEPA4Rec": ours}.items():
        given = {**toy, **settings, "use_gpu": False, "epochs": 1, "run_dir": str(tmp_path / model)}
        given |= {} if model == "SASRec" else {"pretrain_epochs": 1}
        run(model, config_dict=given)
        found[model] = tags(tmp_path / model)
    measured = {f"{part}/{key}" for part in ("valid", "test") for key in ("recall@10", "mrr")}
    for each in found.values():
        assert {"train/loss"} | measured <= each and "Vaild_score" not in each
    assert "pretrain/loss" in found["S3Rec"] & found["JEPA4Rec"] - found["SASRec"]
    log = caplog.text
    assert "device: cpu (" in log and "SASRec-CE on toy, seed 2020" in log


class Recorder(ModuleType):
    """Stands for a library: keeps every call."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **named):
            self.calls.append((name, args, named))
            return self

        return call


def test_both_libraries_are_told(toy, tmp_path, monkeypatch):
    wandb, mlflow = Recorder("wandb"), Recorder("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    given = {**toy, **TINY, "use_gpu": False, "epochs": 1, "run_dir": str(tmp_path / "run")}
    done = run("SASRec", config_dict={**given, "log_wandb": True, "log_mlflow": True})
    named = [name for name, *_ in wandb.calls]
    assert named == ["init", "log", "log", "log", "finish"]
    asked = wandb.calls[0][2]
    assert asked["project"] == "recbole" and asked["config"]["hidden_size"] == 8
    assert wandb.calls[3][1][0] == {
        **{f"test/{key}": value for key, value in done["test"].items()},
        "epoch": 0,
    }
    said = [name for name, *_ in mlflow.calls]
    assert said[:3] == ["set_experiment", "start_run", "log_params"] and said[-1] == "end_run"
    assert "test/recall_at_10" in mlflow.calls[-2][1][0] and mlflow.calls[-1][1] == ("FINISHED",)
    with pytest.raises(ValueError, match="already holds"):
        run("SASRec", config_dict={**given, "log_mlflow": True})


def test_a_library_that_is_missing_is_named(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match="log_mlflow needs mlflow: pip install mlflow"):
        run("SASRec", config_dict={**toy, "log_mlflow": True, "run_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
