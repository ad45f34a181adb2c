"""What is said of settings that RecBole has given up, that no run reads, or that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.yaml_files import as_yaml, read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.layers import Layers
from recbole_jepa4rec.config.recbole_keys import DRAWING, IDLE, RENAMED, TRANSFORMS
from recbole_jepa4rec.config.registry import find_model
from recbole_jepa4rec.config.syntax import SUBKEYS, known_keys
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.runner.quick_start import main


def refusal(*words, model="SASRec"):
    """What is said of words before anything heavy is imported."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the callers look at the message)
        Layers(model, "ml-100k", command_line=words).refuse_early()
    return str(error.value)


class TestNames:
    @pytest.mark.parametrize(("old", "new"), RENAMED.items())
    def test_an_old_key_is_answered_by_its_new_name(self, old, new):
        if "." not in old:
            assert old not in known_keys()
        first, _, second = new.partition(".")
        assert first in known_keys()
        assert not second or second in SUBKEYS[first]
        expected = f"unknown key {old!r} (RecBole calls it {new!r} now) on the command line"
        assert refusal(f"--{old}=1") == expected

    def test_the_old_keys_that_were_answered_by_others(self):
        assert RENAMED["neg_sampling"] == "train_neg_sample_args"
        assert RENAMED["leave_one_num"] == "eval_args.split"

    @pytest.mark.parametrize(
        ("word", "known", "expected"),
        [
            ("neg_sampling", ["neighbor_sample_size"], ""),
            ("leave_one_num", ["ema_momentum"], ""),
            ("learning_rtae", ["learning_rate", "learner"], " (did you mean 'learning_rate'?)"),
            ("choose", ["choice", "int"], " (did you mean 'choice'?)"),
            ("sasrec", ["SASRec", "SASRecF"], " (did you mean 'SASRec'?)"),
            ("", ["seed"], ""),
        ],
    )
    def test_a_far_fetched_spelling_is_not_suggested(self, word, known, expected):
        assert did_you_mean(word, known) == expected


class TestIdle:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--metric_decimal_place=2", "metric_decimal_place 2 has no effect: metrics are"),
            ("--checkpoint_dir=there", "checkpoint_dir 'there' has no effect: a run writes into"),
            ("--valid_metric_bigger=False", "valid_metric_bigger False has no effect: of every"),
            ("--threshold={'rating': 3}", "threshold {'rating': 3} has no effect: no sequential"),
            ("--load_col.item=['item_id']", "load_col.item ['item_id'] has no effect: SASRec rea"),
            ("--load_col.net=['a']", "load_col.net ['a'] has no effect: SASRec reads no columns"),
        ],
    )
    def test_what_no_run_reads_is_refused(self, word, message):
        assert refusal(word).startswith(message)

    def test_an_order_that_ours_draw_themselves(self):
        expected = "shuffle False has no effect: JEPA4Rec draws by seed, epoch and user"
        assert refusal("--shuffle=False", model="JEPA4Rec") == expected
        Layers("SASRec", "ml-100k", command_line=["--shuffle=False"]).refuse_early()

    @pytest.mark.parametrize("key", IDLE)
    def test_every_idle_key_is_one_of_recboles(self, key):
        assert key in known_keys()

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            ("SASRec", ["--metric_decimal_place=4"]),  # as it is anyway
            ("SASRec", ["--load_col.inter=['user_id', 'item_id', 'rating']"]),
            (
                "SASRec",
                ["--load_col.item=['item_id', 'class']", "--val_interval={'class': '[1,2]'}"],
            ),
            ("DIN", ["--load_col.item=['item_id', 'class']"]),
            ("FDSA", ["--load_col.item=['item_id', 'class']"]),
        ],
    )
    def test_what_is_read_is_taken(self, model, words):
        Layers(model, "ml-100k", command_line=words).refuse_early()

    def test_a_run_refuses_it_however_it_is_asked_for(self, toy, workplace):
        from recbole_jepa4rec import run

        with pytest.raises(ValueError, match="metric_decimal_place 2 has no effect"):
            run("Markov", config_dict={**toy, "metric_decimal_place": 2})

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, toy, workplace, capsys):
        words = [f"--{key}={value}" for key, value in toy.items()]
        assert main(["--model=Markov", *words, "--use_gpu=True"]) == 2
        expected = "error: use_gpu True must be False: torch finds no GPU here\n"
        assert capsys.readouterr().err == expected
        assert not [*workplace.iterdir()]
        Path("a.yaml").write_text("use_gpu: true")
        assert main(["--model=Markov", *words, "--config_files=a.yaml"]) == 0  # wherever it runs


class TestTransform:
    @pytest.mark.parametrize(
        ("model", "word", "message"),
        [
            (
                "SASRec",
                "--transform=mask_itemseq",
                "transform 'mask_itemseq' must be None: SASRec reads no other",
            ),
            (
                "BERT4Rec",
                "--transform=~",
                "transform None must be 'mask_itemseq': BERT4Rec reads no other",
            ),
            ("BERT4Rec", "--mask_ratio=0", "mask_ratio 0 must be a number above 0 to 1"),
            ("BERT4Rec", "--mask_ratio=0.001", "mask_ratio 0.001 of MAX_ITEM_LIST_LENGTH 50 masks"),
        ],
    )
    def test_a_model_reads_what_its_own_makes(self, model, word, message):
        assert refusal(word, model=model).startswith(message)

    def test_a_class_of_ones_own_may_have_any(self):
        class Mine(find_model("SASRec")):
            pass

        for name in TRANSFORMS[1:]:
            Layers(Mine, "ml-100k", config_dict={"transform": name}).refuse_early()
        with pytest.raises(ValueError, match="transform is 'mask'; allowed: null, mask_itemseq, "):
            Layers(Mine, "ml-100k", config_dict={"transform": "mask"}).refuse_early()
        with pytest.raises(ValueError, match="mask_ratio None must be a number above 0 to 1"):
            Layers(Mine, "ml-100k", config_dict={"transform": TRANSFORMS[0]}).refuse_early()


class TestNegatives:
    @pytest.mark.parametrize(
        ("model", "words", "message"),
        [
            (
                "SASRec-BPR",
                ["--train_neg_sample_args=~"],
                "train_neg_sample_args is None, and loss_type BPR needs negative items; allowed",
            ),
            (
                "FPMC",
                ["--train_neg_sample_args.distribution=~"],
                "{'distribution': None, 'sample_num': 1, 'alpha': 1.0, 'dynamic': False, "
                "'candidate_num': 0}, and FPMC needs negative items; allowed: distribution uniform",
            ),
            (
                "SASRec-BPR",
                ["--train_neg_sample_args.sample_num=0"],
                "train_neg_sample_args.sample_num 0 must be a whole number from 1",
            ),
            (
                "SASRec-BPR",
                ["--train_neg_sample_args.distribution=zipf"],
                "train_neg_sample_args.distribution 'zipf' must be null or uniform or popularity",
            ),
            (
                "SASRec-BPR",
                ["--train_neg_sample_args.alpha=x"],
                "train_neg_sample_args.alpha 'x' must be a number from 0",
            ),
            (
                "SASRec-BPR",
                ["--train_neg_sample_args.dynamic=True"],
                "train_neg_sample_args.candidate_num 0 must be a whole number from 1 where dynamic",
            ),
            (
                "SASRec",
                ["--train_neg_sample_args.sample_num=2"],
                "must be null: loss_type CE reads no drawn items",
            ),
            (
                "JEPA4Rec",
                ["--train_neg_sample_args={'sample_num': 2}"],
                "train_neg_sample_args {'sample_num': 2} must be null: JEPA4Rec reads no drawn",
            ),
        ],
    )
    def test_a_loss_and_its_negatives_must_go_together(self, model, words, message):
        assert message in refusal(*words, model=model)

    def test_a_model_whose_only_loss_needs_them(self):
        for name in DRAWING:
            assert "input_type" in vars(find_model(name))


class TestValues:
    def test_values_that_yaml_cannot_hold_become_plain(self, toy):
        given = {
            "data_path": Path(toy["data_path"]),
            "topk": (np.int64(5), 10),
            "metrics": ["NDCG"],
        }
        made = Config("Markov", "toy", config_dict={**given, "score_memory_mib": np.float32(64)})
        external = made.external()
        assert external["data_path"] == toy["data_path"]
        assert external["topk"] == [5, 10] and type(external["topk"][0]) is int
        assert type(external["score_memory_mib"]) is float

    def test_others_are_refused(self, toy):
        expected = r"topk in config_dict is a set; allowed: numbers, texts, lists and mappings"
        with pytest.raises(ValueError, match=expected):
            Config("Markov", "toy", config_dict={**toy, "topk": {5, 10}})

    @pytest.mark.parametrize("value", [2**63, -(2**63), 10**30])
    def test_a_number_that_no_tensor_holds(self, value):
        expected = f"train_batch_size on the command line is {value}; allowed: numbers below 2^63"
        assert refusal(f"--train_batch_size={value}") == expected

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("--worker=-1", "worker -1 must be a whole number from 0 to 1024"),
            ("--val_interval=5", "val_interval 5 must be null or a mapping"),
            ("--alias_of_item_id=x", "alias_of_item_id 'x' must be null or a list"),
            ("--normalize_all=5", "normalize_all 5 must be True or False"),
            ("--normalize_field=[1]", "normalize_field [1] must be null or a list"),
            ("--unused_col=[x]", "unused_col ['x'] must be null or a mapping from a file's suffix"),
            ("--config_files='a b", 'config_files "\'a b": No closing quotation'),
            ("--topk=[2026-13-45]", "topk '[2026-13-45]' must be a whole number from 1 or a list"),
        ],
    )
    def test_keys_of_recboles_whose_default_does_not_tell(self, word, expected):
        assert refusal(word).startswith(expected)

    @pytest.mark.parametrize("key", ["data_path", "USER_ID_FIELD", "seq_separator"])
    def test_a_text_is_no_number(self, toy, key):
        with pytest.raises(ValueError, match=f"{key} 5 must be null or a text"):
            Config("SASRec", "toy", config_dict={**toy, key: 5})

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"val_interval": {"price": "[1,2]"}}, "val_interval 'price': no such column is loa"),
            ({"seq_len": {"title": 3}}, "seq_len 'title': no such column is loaded"),
            ({"normalize_field": ["x"]}, "normalize_field 'x': no such column is loaded"),
            ({"val_interval": {"timestamp": "x"}}, r"val_interval.timestamp 'x' must be an inter"),
            ({"val_interval": {"item_id": "[1,2]"}}, "val_interval.item_id '.*' must be a list"),
        ],
    )
    def test_columns_that_settings_name(self, toy, settings, expected):
        with pytest.raises(ValueError, match=expected):
            SequentialTextDataset(Config("Markov", "toy", config_dict={**toy, **settings}))

    def test_cut_offs_that_leave_out_the_valid_metric_are_named(self):
        assert refusal("--topk=[1000000]").startswith(
            "topk [1000000] with metrics ['Recall', 'NDCG', 'MRR'] lacks valid_metric 'NDCG@10' "
            "(add 10, or give valid_metric: recall@1000000, ndcg@1000000,"
        )


class TestYaml:
    BOMB = "a: &a [1, 2]\nb: &b [*a, *a]\n"

    @pytest.mark.parametrize("text", [BOMB, "seed: &a 1\nepochs: *a\n", "a: &a {b: *a}\n"])
    def test_an_alias_is_refused_by_file_and_line(self, tmp_path, text):
        file = tmp_path / "a.yaml"
        file.write_text(text)
        line = 1 + next(n for n, each in enumerate(text.splitlines()) if "*a" in each)
        expected = rf"config file {file}, line {line}: alias \*a is not allowed \(write the value"
        with pytest.raises(ValueError, match=expected):
            read_yaml(file)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("seed: 1\nepochs: 2\nseed: 3\n", "a.yaml, line 3: key 'seed' stands there twice"),
            ("eval_args: {order: TO, order: RO}", "a.yaml, line 1: key 'order' stands there twi"),
            ("seed: 2026-13-45", "a.yaml is not yaml: month must be in 1..12"),
            ("seed: !!int x", "a.yaml is not yaml: invalid literal for int"),
        ],
    )
    def test_what_yaml_would_take_or_end_with(self, tmp_path, text, expected):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=expected):
            read_yaml(tmp_path / "a.yaml")

    def test_what_is_nested_too_deeply_is_refused(self, tmp_path):
        (tmp_path / "a.yaml").write_text(f"a: {'[' * 3000}")
        with pytest.raises(ValueError, match=r"a\.yaml is not yaml: maximum recursion depth"):
            read_yaml(tmp_path / "a.yaml")

    def test_a_value_that_occurs_twice_is_written_out(self, tmp_path):
        twice = [1, 2]
        (tmp_path / "a.yaml").write_text(as_yaml({"a": twice, "b": twice}))
        assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("model", ["SINE", "RepeatNet", "SASRec", "FPMC", "BERT4Rec", "Markov"])
def test_what_a_run_writes_down_of_itself_is_not_refused(toy, tmp_path, model):
    Config(model, config_dict=toy).save(tmp_path / "config.yaml")
    again = Config(config_file_list=[tmp_path / "config.yaml"])
    again.refuse_idle()
    Layers(files=[tmp_path / "config.yaml"]).refuse_early()
