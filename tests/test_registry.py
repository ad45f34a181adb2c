"""What we add to RecBole's tables, and that its own models do not notice."""

import inspect
import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import recbole
import recbole.data.dataset
import recbole.trainer
import recbole.trainer.trainer as recbole_trainer
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset
from recbole.data.transform import MaskItemSequence
from recbole.data.utils import create_samplers, get_dataloader
from recbole.evaluator import register as metric_tables
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import PretrainTrainer, Trainer
from recbole.utils import ModelType, get_model, get_trainer

import recbole_jepa4rec
from recbole_jepa4rec.base.events import EventWriter
from recbole_jepa4rec.base.yaml_files import find_properties
from recbole_jepa4rec.config import registry
from recbole_jepa4rec.config.registry import SETTINGS
from recbole_jepa4rec.config.run_settings import PhasedSettings
from recbole_jepa4rec.model.base import PhasedModel
from recbole_jepa4rec.plugin import register
from recbole_jepa4rec.training.phase_trainer import PhaseTrainer
from recbole_jepa4rec.training.protocol import ProtocolTrainer
from tests.conftest import ROOT

SIGNATURES = {
    RecBoleConfig.__init__: "self model dataset config_file_list config_dict",
    RecBoleConfig._load_config_files: "self file_list",
    RecBoleConfig._load_variable_config_dict: "self config_dict",
    RecBoleConfig._load_cmd_line: "self",
    RecBoleConfig._get_model_and_dataset: "self model dataset",
    RecBoleConfig._load_internal_config_dict: "self model model_class dataset",
    RecBoleConfig._update_internal_config_dict: "self file",
    RecBoleConfig._get_final_config_dict: "self",
    RecBoleConfig._set_default_parameters: "self",
    RecBoleConfig._init_device: "self",
    RecBoleConfig._build_yaml_loader: "self",
    Trainer.__init__: "self config model",
    Trainer.fit: "self train_data valid_data verbose saved show_progress callback_fn",
    Trainer.evaluate: "self eval_data load_best_model model_file show_progress",
    Trainer.resume_checkpoint: "self resume_file",
    Trainer._train_epoch: "self train_data epoch_idx loss_func show_progress",
    Trainer._save_checkpoint: "self epoch verbose kwargs",
    Trainer._full_sort_batch_eval: "self batched_data",
    Trainer._check_nan: "self loss",
    Trainer._valid_epoch: "self valid_data show_progress",
    Trainer._add_train_loss_to_tensorboard: "self epoch_idx losses tag",
    Trainer._add_hparam_to_tensorboard: "self best_valid_result",
    PretrainTrainer.pretrain: "self train_data verbose show_progress",
    PretrainTrainer.save_pretrained_model: "self epoch saved_model_file",
    recbole_trainer.get_tensorboard: "logger",
    get_model: "model_name",
    get_trainer: "model_type model_name",
    create_dataset: "config",
    create_samplers: "config dataset built_datasets",
    get_dataloader: "config phase",
    MaskItemSequence._neg_sample: "self item_set n_items",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_upstream_has_not_moved(function):
    assert " ".join(inspect.signature(function).parameters) == SIGNATURES[function]


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_entry_imports_and_has_a_yaml(name):
    assert recbole_jepa4rec.find_model(name).__name__ == name
    assert (find_properties() / "model" / f"{name}.yaml").is_file()
    trainer = registry.find_trainer(
        recbole_jepa4rec.find_model(name), {"MODEL_TYPE": ModelType.SEQUENTIAL}
    )
    assert issubclass(trainer, ProtocolTrainer)


@pytest.mark.parametrize("name", registry.MODELS)
def test_what_is_declared_of_a_model_is_what_its_classes_say(name):
    entry, keys = registry.MODELS[name], SETTINGS[name].keys()
    model = recbole_jepa4rec.find_model(name)
    assert entry.in_phases == issubclass(model, PhasedModel)
    assert entry.in_phases == issubclass(SETTINGS[name], PhasedSettings)
    assert entry.in_phases == (get_trainer(ModelType.SEQUENTIAL, name) is PhaseTrainer)
    if "training_targets" in keys:
        assert ", ".join(entry.training_targets) == keys["training_targets"].allowed
    elif entry.in_phases:
        assert entry.training_targets == (model.training_targets,)
    assert entry.needs_retriever == model.needs_retriever == ("retriever" in keys)
    bounds_text = [key for key in keys if key.startswith("max_") and key.endswith("_tokens")]
    assert entry.reads_text == bool(bounds_text or "text_weight" in keys)


@pytest.mark.parametrize("name", registry.MODELS)
def test_recboles_look_ups_find_ours(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    assert get_model(name) is recbole_jepa4rec.find_model(name)
    assert issubclass(get_trainer(ModelType.SEQUENTIAL, name), ProtocolTrainer)
    assert hasattr(recbole.data.dataset, f"{name}Dataset")
    config = RecBoleConfig(model=name, dataset="ml-100k")
    assert config["MODEL_INPUT_TYPE"]
    assert config["train_neg_sample_args"]["distribution"] == "none"  # our yaml says so


def test_recboles_data_set_look_up_gives_ours(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    dataset = create_dataset(RecBoleConfig(model="Markov", dataset="ml-100k"))
    assert type(dataset).__name__ == "SequentialTextDataset"


def test_the_metric_is_in_recboles_tables():
    assert "fullmrr" in metric_tables.metrics_dict
    assert metric_tables.metric_information["fullmrr"] == ["rec.meanrank"]
    assert "fullmrr" not in metric_tables.smaller_metrics


def test_recboles_own_names_stay():
    assert get_trainer(ModelType.SEQUENTIAL, "SASRec") is Trainer
    assert get_model("SASRec") is SASRec is recbole_jepa4rec.find_model("SASRec")
    assert not hasattr(recbole.trainer, "NoSuchTrainer")
    assert not hasattr(recbole.data.dataset, "SASRecDataset")


def test_registering_twice_wraps_once():
    load, writer = RecBoleConfig._load_internal_config_dict, recbole_trainer.get_tensorboard
    register()
    assert RecBoleConfig._load_internal_config_dict is load
    assert recbole_trainer.get_tensorboard is writer


def test_events_are_written_where_recbole_writes_them_once_there_are_any(workplace):
    writer = recbole_trainer.get_tensorboard(logging.getLogger("one without files"))
    writer.close()
    assert not list(workplace.iterdir())
    writer.add_scalar("loss", 1.0, 0)
    writer.add_hparams({"a": 1}, {"b": 2.0})
    writer.close()
    (folder,) = workplace.glob("log_tensorboard/model-*")
    assert len(list(folder.rglob("events.*"))) == 2


def test_events_may_be_written_nowhere(workplace):
    writer = EventWriter(None)
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    EventWriter.into(workplace / "none").close()
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SASrec", "unknown model 'SASrec' (did you mean 'SASRec'?)"),
        ("jepa4rec", "unknown model 'jepa4rec' (did you mean 'JEPA4Rec'?)"),
        ("qqqqqq", "unknown model 'qqqqqq'"),
        ("LightGCN", "model 'LightGCN' is not sequential; only sequential models can run here"),
    ],
)
def test_an_unknown_model_is_refused(name, message):
    with pytest.raises(ValueError, match="model") as error:
        recbole_jepa4rec.find_model(name)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("SASRec", ("SASRec", {})),
        ("SASRec-BPR", ("SASRec", {"loss_type": "BPR"})),
        ("GRU4Rec-CE", ("GRU4Rec", {"loss_type": "CE"})),
        ("Markov", ("Markov", {})),
    ],
)
def test_an_entry_names_a_model_and_its_loss(entry, found):
    assert registry.find_entry(entry) == found


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "SASRec-TOP1",
            "model 'SASRec-TOP1': no such loss (allowed: SASRec, SASRec-CE, SASRec-BPR)",
        ),
        ("SASRec-", "model 'SASRec-': no such loss (allowed: SASRec, SASRec-CE, SASRec-BPR)"),
        ("Markov-CE", "model 'Markov-CE': Markov has one loss only (write Markov)"),
        ("SASrec-CE", "unknown model 'SASrec' (did you mean 'SASRec'?)"),
    ],
)
def test_an_entry_that_names_nothing_is_refused(entry, message):
    with pytest.raises(ValueError, match="model") as error:
        registry.find_entry(entry)
    assert str(error.value) == message


def test_the_models_with_a_choice_of_loss_are_those_whose_yaml_has_one():
    folder = Path(recbole.__file__).parent / "properties" / "model"
    with_loss = {file.stem for file in folder.glob("*.yaml") if "loss_type:" in file.read_text()}
    names = {file.stem for file in folder.glob("*.yaml")} | set(registry.MODELS)
    assert {name for name in names if registry.has_loss_type(name)} == with_loss


def test_a_model_with_a_data_set_class_of_its_own_is_refused():
    with pytest.raises(ValueError, match="'DIEN' needs RecBole's own DIENDataset"):
        registry.find_dataset(recbole_jepa4rec.find_model("DIEN"))


def test_importing_is_light():
    assert python(f"import recbole_jepa4rec\n{PRINT_HEAVY}") == "[]"


PRINT_HEAVY = """
import sys
print(sorted({"numpy", "pandas", "ray", "recbole", "torch", "transformers"} & {*sys.modules}))
"""


SET = "--dataset=ml-100k"
RUN, GROUP = "runner.quick_start", "study.group"
SEARCH = "study.search.driver"
ANY = "__main__"


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (RUN, ["--model=SASRc", SET], "unknown model 'SASRc' (did you mean 'SASRec'?)"),
        (RUN, ["--model=SASRec", "--dataset=ml-100"], "no data set 'ml-100' in dataset (did you "),
        (RUN, ["--model=SASRec", SET, "--epoch=1"], "unknown key 'epoch' (did you mean"),
        (RUN, ["--model=VQRec", SET, "--epochs=-1"], "epochs -1 must be a whole number"),
        (RUN, ["--model=SASRec", SET, "--config_files=x"], "cannot read config file x"),
        (RUN, [SET], "no model is named (write --model=NAME)"),
        (RUN, ["SASRec"], "stray word 'SASRec' on the command line"),
        (GROUP, ["--model_list=SASRc", SET], "unknown model 'SASRc' (did you mean 'SASRec'?)"),
        (GROUP, ["--model_list=SASRec", SET, "--seeds=x"], "seeds 'x' must be a whole number"),
        (GROUP, ["--model_list=SASRec,VQRec", SET, "--epochs=-1"], "epochs -1 must be a whole"),
        (GROUP, ["--model_list=SASRec", "--dataset=ml-100"], "no data set 'ml-100' in dataset"),
        (SEARCH, ["--model=SASRc", SET], "unknown model 'SASRc' (did you mean 'SASRec'?)"),
        (SEARCH, ["--model=SASRec", SET, "--num_samples=0"], "num_samples '0' must be a whole"),
        (SEARCH, ["--model=SASRec", SET, "--epochs=-1"], "epochs -1 must be a whole number"),
        (SEARCH, ["--model=SASRec", SET, "--search=x.yaml"], "cannot read config file x.yaml"),
        (SEARCH, ["--model=FDSA", SET], "no search space for model 'FDSA' (there are: "),
        (SEARCH, ["--model=SASRec", SET, "--ema_momentum=0.9"], "ema_momentum 0.9 has no effect: "),
        (ANY, ["report", "runs"], "the following arguments are required: --out (see recbole-j"),
        (ANY, ["report", "tests", "--out=pyproject.toml"], "--out=pyproject.toml is not a folder"),
        (ANY, ["report", "nowhere", "--out=page"], "nowhere is no folder; allowed: run folders"),
        (ANY, ["runs", "--data=toy"], "unrecognized arguments: --data=toy (see recbole-jepa4rec"),
        (ANY, ["runs", "tests"], "tests has no finished run: no result.json stands in or below"),
        (ANY, ["doctor", "now"], "unrecognized arguments: now (see recbole-jepa4rec doctor --he"),
        (ANY, ["models", "SASRc"], "unknown model 'SASRc' (did you mean 'SASRec'?)"),
        (ANY, ["convert", "yelp", "a", "b", "c", "--out=d"], "yelp: expected REVIEWS [BUSINESSE"),
        (ANY, ["convert", "steam", "a", "--core=x", "--out=d"], "argument --core: 'x' must be a"),
        (ANY, ["convert", "check"], "the following arguments are required: FOLDER (see python"),
    ],
)
def test_words_are_refused_before_anything_heavy_is_imported(command, words, message):
    run = f"from recbole_jepa4rec.{command} import main\nprint(main({words!r}))"
    said = python(f"import sys\nsys.stderr = sys.stdout\n{run}\n{PRINT_HEAVY}").splitlines()
    assert said[0].startswith(f"error: {message}")
    assert said[1:] == ["2", "[]"]


def test_what_a_search_varies_is_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "space.yaml").write_text("n_layers: {choice: [1, 0]}")
    test_words_are_refused_before_anything_heavy_is_imported(
        SEARCH,
        ["--model=SASRec", SET, f"--search={tmp_path}/space.yaml"],
        f"{tmp_path}/space.yaml: n_layers 0: n_layers 0 must be a whole number from 1",
    )


def test_recbole_may_be_imported_afterwards():
    script = (
        "import recbole_jepa4rec\n"
        "from recbole.utils import ModelType, get_model, get_trainer\n"
        "from recbole.data import dataset\n"
        "from recbole.evaluator import metrics_dict\n"
        "names = get_model('JEPA4Rec'), get_trainer(ModelType.SEQUENTIAL, 'JEPA4Rec')\n"
        "names += dataset.JEPA4RecDataset, metrics_dict['fullmrr']\n"
        "print(*(each.__name__ for each in names))"
    )
    assert python(script) == "JEPA4Rec PhaseTrainer SequentialTextDataset FullMRR"


@pytest.mark.parametrize("command", ["run", "compare", "search", "report", "runs", "models"])
def test_without_recbole_one_command_is_named(command):
    said = python(
        "import sys; sys.modules['recbole'] = None; sys.stderr = sys.stdout\n"
        f"from recbole_jepa4rec.__main__ import main\nmain(['{command}', '--model=SASRec'])"
    )
    mend = "pip install --no-deps recbole==1.2.1"
    assert said == f"error: RecBole is not installed; mend it by: {mend}"


COMPARE = """
import json, logging, sys
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
sys.argv = ["script"]
settings = dict(data_path=sys.path[0], load_col={"inter": ["user_id", "item_id", "timestamp"]},
    epochs=1, train_neg_sample_args=None, hidden_size=8,
    n_heads=1, n_layers=1, show_progress=False, MAX_ITEM_LIST_LENGTH=5, train_batch_size=16)
config = Config("SASRec", "made", config_dict=settings)
init_seed(1, True)
train, valid, test = data_preparation(config, create_dataset(config))
model = get_model("SASRec")(config, train._dataset)
trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
trainer.fit(train, valid, saved=False, verbose=False)
settings = {key: str(value) for key, value in config.final_config_dict.items()}
print(json.dumps([settings, trainer.evaluate(test, load_best_model=False)]))
"""

NUMPY_1_NAMES = """
import numpy as np
for old, new in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if old not in np.__dict__:
        setattr(np, old, new)  # without them RecBole's Config fails on numpy 2
"""


def test_recboles_models_are_the_same_with_and_without_the_import(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    rows = [f"u{u}\ti{(u * 3 + n) % 11}\t{n}" for u in range(12) for n in range(7)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "made.inter").write_text("\n".join([header, *rows]) + "\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{NUMPY_1_NAMES}{COMPARE}"
    without = python(script, tmp_path)
    assert json.loads(without.splitlines()[-1])[1]["recall@10"] > 0
    assert python(f"import recbole_jepa4rec\n{script}", tmp_path) == without


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="RecBole's quick_start imports ray")
def test_recboles_quick_start_runs_ours(tmp_path):
    script = (
        "import recbole_jepa4rec, json; from recbole.quick_start import run_recbole\n"
        "r = run_recbole('Markov', 'ml-100k', config_dict={'show_progress': False})\n"
        "print(json.dumps(r['test_result']))"
    )
    result = json.loads(python(script, tmp_path).splitlines()[-1])
    assert round(result["ndcg@10"], 4) == 0.0514


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="RecBole's quick_start imports ray")
def test_recboles_quick_start_trains_jepa4rec(tmp_path):
    settings = {
        "data_path": str(ROOT / "dataset"),
        "cache_dir": str(tmp_path),
        "show_progress": False,
        "hidden_size": 16,
        "vocab_size": 300,
        "pretrain_epochs": 1,
        "epochs": 2,
        "frozen_items_epochs": 1,
        "eval_step": 1,
    }
    script = (
        "import recbole_jepa4rec, json; from recbole.quick_start import run_recbole\n"
        f"r = run_recbole('JEPA4Rec', 'toy', config_dict={settings!r})\n"
        "print(json.dumps([r['best_valid_score'], r['test_result']]))"
    )
    best, result = json.loads(python(script, tmp_path).splitlines()[-1])
    assert 0 < best < 1 and 0 < result["mrr"] < 1


def python(script, folder=None):
    """Standard output of a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
