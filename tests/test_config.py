"""Layers, spellings, and what is refused before anything runs."""

import copy
import os
import re
import sys
from pathlib import Path

import pytest
import recbole
import yaml
from recbole.utils import argument_list

from recbole_jepa4rec.base.yaml_files import Loader, find_properties
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.recbole_keys import refuse_theirs
from recbole_jepa4rec.config.registry import MODELS, sequential_models
from recbole_jepa4rec.config.syntax import (
    arguments_of_recbole,
    default_settings,
    keys_of_others,
    known_keys,
    parse_command_line,
    parse_value,
)
from tests.conftest import ROOT

RECBOLE = Path(recbole.__file__).parent / "properties"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Config may set CUDA_VISIBLE_DEVICES; it is put back."""
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")


def config(*command_line, model="SASRec", dataset="ml-100k", files=None, **settings):
    return Config(model, dataset, files, settings, command_line)


def refusal(*command_line, **arguments):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config(*command_line, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder, text, name="given.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


class TestLayers:
    def test_later_layers_win(self, tmp_path):
        one = written(tmp_path, "epochs: 1\nseed: 1\nlearning_rate: 1e-3\nstopping_step: 1\n")
        two = written(tmp_path, "seed: 2\nlearning_rate: 2e-3\n", "two.yaml")
        made = config("--learning_rate=4e-3", f"--config_files={two}", files=[one], stopping_step=3)
        keys = ("epochs", "seed", "stopping_step", "learning_rate", "n_layers")
        assert [made[key] for key in keys] == [1, 2, 3, 0.004, 2]

    def test_our_overall_is_the_protocol(self):
        made = config()
        assert made["metrics"] == ["Recall", "NDCG", "MRR"]
        assert made["valid_metric"] == "NDCG@10"
        assert made["eval_args"]["mode"] == {"valid": "full", "test": "full"}
        assert made["filter_history"] is False

    def test_our_overall_names_no_key_of_a_recbole_model(self):
        ours = set(yaml.load((find_properties() / "overall.yaml").read_text(), Loader))
        for file in RECBOLE.glob("model/*.yaml"):
            assert not ours & set(yaml.load(file.read_text(), Loader) or {}), file.name

    def test_one_entry_of_eval_args_leaves_the_others(self):
        for made in (config("--eval_args.mode=full"), config(eval_args={"mode": "full"})):
            assert made["eval_args"] == config()["eval_args"]

    def test_a_dotted_key_changes_one_entry(self):
        made = config("--load_col.item=[item_id, class]", "--clip_grad_norm.max_norm=5")
        assert made["load_col"]["item"] == ["item_id", "class"]
        assert made["load_col"]["inter"] == config()["load_col"]["inter"]
        assert made["clip_grad_norm"] == {"max_norm": 5}

    @pytest.mark.parametrize("dataset", ["ml-100k", "toy"])
    def test_what_is_checked_early_is_what_recbole_reads(self, dataset):
        for model in [*MODELS, *sequential_models()]:
            early, late = (
                default_settings(model, dataset),
                config(model=model, dataset=dataset).internal_config_dict,
            )
            differs = {key for key in {*early, *late} if early.get(key) != late.get(key)}
            assert differs <= {"MODEL_TYPE", "load_col", "additional_feat_suffix"}

    def test_full_softmax_needs_no_negatives(self):
        assert config()["train_neg_sample_args"]["distribution"] == "none"
        assert config(loss_type="BPR")["train_neg_sample_args"]["distribution"] == "uniform"

    def test_a_model_s_name_may_choose_its_loss(self):
        made = config(model="SASRec-BPR")
        assert (made["model"], made["loss_type"]) == ("SASRec", "BPR")
        assert made["train_neg_sample_args"]["distribution"] == "uniform"
        again = Config(config_dict=made.external())
        assert again["loss_type"] == "BPR"
        assert config("--loss_type=BPR", model="SASRec-BPR")["loss_type"] == "BPR"
        expected = "model 'SASRec-BPR' and loss_type 'CE' contradict each other"
        assert refusal("--loss_type=CE", model="SASRec-BPR") == expected

    def test_model_and_data_set_may_stand_in_any_layer(self):
        made = Config(config_dict={"model": "GRU4Rec"}, command_line=["--dataset=ml-100k"])
        assert (made["model"], made["dataset"]) == ("GRU4Rec", "ml-100k")

    def test_arguments_of_the_process_are_not_read(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["script", "--epochs=77", "--tb=short"])
        assert config()["epochs"] == 300

    def test_the_callers_dict_stays(self):
        settings = {"topk": "[5]", "valid_metric": "MRR@5", "eval_args": {"mode": "full"}}
        before = copy.deepcopy(settings)
        assert config(**settings)["topk"] == [5]
        assert settings == before

    def test_a_saved_config_gives_an_equal_one(self, tmp_path):
        made = config("--topk=5,10", "--loss_type=BPR", "--load_col.item=[item_id]", run_dir="x")
        made.save(tmp_path / "config.yaml")
        again = Config(config_file_list=[tmp_path / "config.yaml"])
        assert again.external() == made.external()
        differing = {
            key
            for key in {*made.final_config_dict, *again.final_config_dict}
            if made[key] != again[key]
        }
        assert differing == {"run_dir"}


class TestParts:
    def test_a_copy_has_other_values_and_tells_of_the_same_run(self):
        made = config("--seed=3")
        made["MASK_INDEX"] = "what RecBole puts here"
        other = made.with_settings({"run_dir": "x", "eval_batch_size": 2, "seed": 4})
        assert (other["run_dir"], other["eval_batch_size"], other["seed"]) == ("x", 2, 4)
        assert (made["run_dir"], made["eval_batch_size"], made["seed"]) == (None, 4096, 3)
        assert other["MASK_INDEX"] == made["MASK_INDEX"]
        assert other.external() == made.external()
        assert not other.given("run_dir")
        with pytest.raises(ValueError, match="unknown key 'sed'"):
            made.with_settings({"sed": 1})

    def test_what_the_data_told_belongs_to_the_run(self):
        made, columns = config(), ["class"]
        made.settle({"selected_features": columns})
        columns.append("title")
        assert made["selected_features"] == made.external()["selected_features"] == ["class"]


class TestValues:
    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("epochs", "3", 3),
            ("learning_rate", "1e-3", 0.001),
            ("topk", "[5, 10]", [5, 10]),
            ("topk", "5,10", [5, 10]),
            ("metrics", "[Recall,NDCG]", ["Recall", "NDCG"]),
            ("filter_history", "true", True),
            ("filter_history", "False", False),
            ("checkpoint", "null", None),
            ("checkpoint", "2024", "2024"),
            ("checkpoint", "runs/a=b/x", "runs/a=b/x"),
            ("gpu_id", "0,1", "0,1"),
            ("gpu_id", "", ""),
            ("user_inter_num_interval", "[5,inf)", "[5,inf)"),
            ("seed", "3-4", "3-4"),
            ("seed", "re.sub", "re.sub"),
            ("seed", "__import__('os').getpid()", "__import__('os').getpid()"),
            ("clip_grad_norm", "{'max_norm': 1}", {"max_norm": 1}),
        ],
    )
    def test_texts_are_literals_and_never_run(self, key, text, value):
        parsed = parse_value(key, text)
        assert parsed == value
        assert type(parsed) is type(value)

    def test_both_forms_of_the_command_line(self):
        words = ["--epochs=3", "--seed", "-1", "--checkpoint=a=b", "--gpu_id="]
        found = {"epochs": "3", "seed": "-1", "checkpoint": "a=b", "gpu_id": ""}
        assert parse_command_line(words) == found

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["epochs=3"], "stray word 'epochs=3'"),
            (["--epochs=3", "4"], "stray word '4'"),
            (["-epochs=3"], "stray word '-epochs=3'"),
            (["--=3"], "stray word '--=3'"),
            (["--epochs"], "--epochs has no value"),
            (["--epochs", "--seed=1"], "--epochs has no value"),
            (["--seed=1", "--seed=2"], "--seed is given twice: '1' and '2'"),
        ],
    )
    def test_a_malformed_command_line_is_refused(self, words, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_command_line(words)


class TestRefusals:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--learnin_rate=1", "unknown key 'learnin_rate' (did you mean 'learning_rate'?)"),
            ("--eval_args.mod=full", "unknown key 'eval_args.mod' (did you mean 'mode'?)"),
            ("--nproc=0", "nproc 0 must be a whole number from 1"),
            ("--port=x", "port 'x' must be null or a whole number from 1"),
            ("--checkpoint_steps=0", "checkpoint_steps 0 must be null or a whole number from 1"),
            (f"--seed={2**32}", f"seed {2**32} must be a whole number from 0 to {2**32 - 1}"),
            ("--epochs=abc", "epochs 'abc' must be a whole number from 0"),
            ("--epochs=1.5", "epochs 1.5 must be a whole number"),
            ("--epochs=-1", "epochs -1 must be a whole number"),
            ("--train_batch_size=0", "train_batch_size 0 must be a whole number from 1"),
            ("--filter_history=perhaps", "filter_history 'perhaps' must be True or False"),
            ("--max_train_seconds=0", "max_train_seconds 0 must be null or a number above 0"),
            ("--state=loud", "state 'loud' must be one of debug"),
            ("--metrics=[AUC]", "metric 'auc' is unknown (allowed: recall, hit, ndcg"),
            ("--metrics=[ItemCoverage]", "metric 'itemcoverage' is unknown"),
            ("--topk=[0]", "topk [0] must be a whole number from 1 or a list"),
            ("--topk=many", "topk 'many' must be a whole number from 1"),
            (
                "--valid_metric=NDCG@5",
                "valid_metric 'NDCG@5' is not measured, or selects no model (allowed: recall@10",
            ),
            ("--eval_args.mode=uni100", "eval_args.mode 'uni100'"),
            ("--eval_args.order=RO", "eval_args.order 'RO'"),
            ("--eval_args.split={'RS': [8, 1, 1]}", "eval_args.split {'RS': [8, 1, 1]}"),
            ("--eval_args=3", "eval_args 3 must be a mapping"),
            ("--seed.x=3", "key 'seed.x': 'seed' is 2020, which holds no keys"),
            ("--save_dataset=True", "save_dataset is not supported"),
            ("--benchmark_filename=[a,b]", "benchmark_filename ['a', 'b'] must be three"),
            ("--epochs=null", "epochs None must be a whole number from 0"),
            ("--stopping_step=-1", "stopping_step -1 must be a whole number from 0"),
            ("--MAX_ITEM_LIST_LENGTH=0", "MAX_ITEM_LIST_LENGTH 0 must be a whole number from 1"),
            ("--hidden_size=1.5", "hidden_size 1.5 must be a whole number from 1"),
            ("--learning_rate=-1", "learning_rate -1 must be a number from 0"),
            ("--learner=adamm", "learner 'adamm' must be one of adam, adamw, sgd"),
            ("--clip_grad_norm=1", "clip_grad_norm 1 must be null or a mapping"),
            ("--clip_grad_norm={norm_type: 2}", "clip_grad_norm {'norm_type': 2} must be null or"),
            ("--clip_grad_norm.norm=1", "unknown key 'clip_grad_norm.norm'"),
            (
                "--item_text_fields=[]",
                "item_text_fields [] must be null or a name or a list of names",
            ),
            (
                "--item_text_fields=5",
                "item_text_fields 5 must be null or a name or a list of names",
            ),
            ("--load_col=[title]", "load_col ['title'] must be null or a mapping"),
            ("--load_col.item=title", "'item': 'title'} must be null or a mapping"),
            ("--user_inter_num_interval=5", "user_inter_num_interval '5' must be an interval"),
            ("--item_inter_num_interval=[9,5]", "item_inter_num_interval '[9,5]' must be an inter"),
            ("--item_inter_num_interval=[5,x)", "item_inter_num_interval '[5,x)' must be an inter"),
        ],
    )
    def test_by_name(self, word, message):
        assert message in refusal(word)

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--pretrain_epochs=-1", "a whole number from 0"),
            ("--frozen_items_epochs=1.5", "a whole number from 0"),
            ("--pretrain_batch_size=0", "a whole number from 1"),
            ("--num_heads=0", "a whole number from 1"),
            ("--vocab_size=9", "a whole number from 10 to 500000"),
            ("--vocab_size=1000000000", "a whole number from 10 to 500000"),
            ("--tokens_per_batch=0", "a whole number from 1"),
            ("--max_attribute_tokens=1", "a whole number from 2"),
            ("--accumulation_steps=True", "a whole number from 1"),
            ("--items_per_step=-1", "a whole number from 0"),
            ("--dropout=1", "a number from 0 to below 1"),
            ("--pretrain_validation_ratio=1.0", "a number from 0 to below 1"),
            ("--warmup_ratio=1.1", "a number from 0 to 1"),
            ("--ema_momentum=-0.1", "null or a number from 0 to 1"),
            ("--temperature=null", "a number above 0"),
            ("--pretrain_learning_rate=-1", "a number from 0"),
            ("--attention_window=7", "null or an even whole number from 2"),
            ("--attention_window=0", "null or an even whole number from 2"),
        ],
    )
    def test_keys_of_jepa4rec(self, word, message):
        key = word[2:].partition("=")[0]
        text = refusal(word, model="JEPA4Rec")
        assert text.startswith(f"{key} ")
        assert text.endswith(f" must be {message}")

    @pytest.mark.parametrize(
        ("word", "model", "message"),
        [
            ("--save_step=0", "S3Rec", "save_step 0 must be a whole number from 1"),
            ("--pretrain_memory_mib=0", "S3Rec", "pretrain_memory_mib 0 must be a number above 0"),
            ("--pretrain_time_ratio=2", "S3Rec", "pretrain_time_ratio 2 must be a number from 0"),
            (
                "--MAX_ITEM_LIST_LENGTH=4",
                "BERT4Rec",
                "mask_ratio 0.2 of MAX_ITEM_LIST_LENGTH 4 masks no item",
            ),
        ],
    )
    def test_keys_of_recboles_models(self, word, model, message):
        assert refusal(word, model=model).startswith(message)

    def test_limits_are_allowed(self):
        words = ["ema_momentum=1", "warmup_ratio=0", "attention_window=2", "dropout=0", "epochs=0"]
        words += ["training_targets=random"]
        words += ["user_inter_num_interval=(2,5];[7,inf)", "item_text_fields=title"]
        made = config(*(f"--{word}" for word in words), model="JEPA4Rec")
        assert (made["ema_momentum"], made["attention_window"]) == (1, 2)

    def test_a_name_that_a_recbole_model_uses_otherwise_is_left_to_it(self):
        refuse_theirs({"hidden_size": [8, 8]}, {"hidden_size": [64, 32]})
        with pytest.raises(ValueError, match="hidden_size 0 must be a whole number from 1"):
            refuse_theirs({"hidden_size": 0}, {"hidden_size": 64})

    @pytest.mark.parametrize("name", ["a,a", "../a", "", "a,", "a+b", ".."])
    def test_names_that_are_no_folder(self, name):
        assert "data" in refusal(dataset=name)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds no `key: value` lines"),
            (b"# nothing\n", "holds no `key: value` lines"),
            (b"- a\n", "holds no `key: value` lines"),
            (b"seed: 1\nepochs: [1\n", "line 3: "),
            (b"seed: \xff\n", "is not UTF-8 at byte 6"),
            (b"seed: !!python/object/apply:os.getpid []\n", "line 1: "),
            (b"sed: 1\n", "unknown key 'sed' (did you mean 'seed'?) in "),
        ],
    )
    def test_a_file_is_named(self, tmp_path, content, message):
        path = tmp_path / "given.yaml"
        path.write_bytes(content)
        text = refusal(files=[path])
        assert message in text
        assert str(path) in text

    def test_a_missing_file_is_named(self):
        assert refusal("--config_files=/no/such.yaml").startswith(
            "cannot read config file /no/such"
        )

    def test_keys_of_other_models_are_told(self):
        assert config("--num_layers=2", "--n_layers=1").unread_keys() == ["num_layers"]

    @pytest.mark.parametrize("model", sorted(sequential_models()))
    def test_what_recboles_code_reads_is_its_own(self, model):
        file = RECBOLE.parent / "model" / "sequential_recommender" / f"{model.lower()}.py"
        read = {*re.findall(r"config\[.(\w+).\]", file.read_text(encoding="utf-8"))}
        assert read and not read & keys_of_others(model)


class TestSources:
    def test_ones_own_ml_100k_beats_the_bundled_one(self, tmp_path):
        assert "dataset_example" in config(data_path=str(tmp_path))["data_path"]
        (tmp_path / "ml-100k").mkdir()
        assert config(data_path=str(tmp_path))["data_path"] == str(tmp_path / "ml-100k")

    @pytest.mark.parametrize("names", ["a,b", ["a", "b"]])
    def test_several(self, names):
        made = config(dataset=names)
        assert (made["dataset"], made["source_datasets"]) == ("a+b", ["a", "b"])
        assert made.external()["dataset"] == ["a", "b"]
        assert config()["source_datasets"] is None


class TestDevice:
    def test_the_environment_wins(self, monkeypatch):
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "3")
        config("--gpu_id=1")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"

    def test_a_given_gpu_is_set_and_a_default_is_not(self, monkeypatch):
        monkeypatch.delitem(os.environ, "CUDA_VISIBLE_DEVICES")
        config()
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        config("--gpu_id=1,2")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"

    def test_the_cpu_can_be_asked_for(self):
        assert config("--use_gpu=False")["device"].type == "cpu"
        assert config("--gpu_id=")["device"].type == "cpu"


class TestOurFiles:
    def test_recboles_lists_are_read_as_it_has_them(self):
        for kind in ("general", "dataset"):
            ours = [*arguments_of_recbole(kind)]
            theirs = getattr(argument_list, f"{kind}_arguments")
            assert ours and ours == theirs[: len(ours)]  # its Config appends to them
        with pytest.raises(ValueError, match="lists no other arguments"):
            arguments_of_recbole("other")

    def test_every_key_of_a_preset_is_known(self):
        for file in find_properties().glob("preset/*.yaml"):
            content = yaml.load(file.read_text(encoding="utf-8"), Loader)
            assert set(content) <= known_keys(), file.name

    def test_every_key_is_read_by_some_code(self):
        code = "\n".join(
            path.read_text(encoding="utf-8")
            for folder in (ROOT / "recbole_jepa4rec", RECBOLE.parent)
            for path in folder.rglob("*.py")
        )
        files = [find_properties() / "overall.yaml", *find_properties().glob("model/*.yaml")]
        for file in files:
            for key in yaml.load(file.read_text(encoding="utf-8"), Loader) or {}:
                assert re.search(rf"\b{key}\b", code), f"{key} of {file.name}"
