"""The runner and its script: what a run writes, says and refuses."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from recbole_jepa4rec.base import launch
from recbole_jepa4rec.base.checkpoint import load_state, read_weights
from recbole_jepa4rec.base.command import RESUMABLE
from recbole_jepa4rec.config.registry import find_model
from recbole_jepa4rec.convert.checks import problems
from recbole_jepa4rec.evaluation.metrics import mean_metrics
from recbole_jepa4rec.runner import doctor, quick_start, single_run
from recbole_jepa4rec.runner.quick_start import main, run
from recbole_jepa4rec.study.group import main as compare
from recbole_jepa4rec.study.search.driver import main as search
from tests.conftest import ROOT, TINY

KEYS = {
    "vectors",
    "starts",
    "label",
    "model",
    "dataset",
    "seed",
    "stage",
    "status",
    "protocol",
    "data_fingerprint",
    "text_fingerprint",
    "inputs",
    "checkpoint_from",
    "pretrain_datasets",
    "statistics",
    "valid",
    "test",
    "epochs",
    "best_epoch",
    "learning_curve",
    "seconds",
    "tokens_per_second",
    "peak_memory_gib",
    "parameters",
    "hardware",
    "versions",
    "command",
}
METRICS = ["recall@10", "ndcg@10", "mrr@10", "mrr"]


@pytest.fixture
def words(toy):
    """A command line that trains SASRec on the toy set in a moment."""
    settings = {"model": "SASRec", "epochs": 2, **toy, **TINY}
    return [f"--{key}={value}" for key, value in settings.items()]


class TestResult:
    @pytest.fixture
    def done(self, workplace, toy):
        return run("SASRec", config_dict={**toy, **TINY, "epochs": 2, "topk": [1, 5, 10]})

    def test_a_run_writes_one_folder(self, done, workplace):
        assert [path.name for path in workplace.iterdir()] == ["runs"]
        folder = workplace / "runs" / "toy" / "SASRec"
        (folder,) = folder.iterdir()
        assert done["path"] == str((folder / "result.json").relative_to(workplace))
        names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
        whole = {"config.yaml", "run.log", "model.safetensors", "state.pt", "result.json"}
        assert names == whole | {"per_user.parquet"}
        assert any("tfevents" in path.name for path in folder.iterdir())
        assert read_weights(folder / "model.safetensors")[1]["model"] == "SASRec"
        assert load_state(folder / "state.pt")["model"] == "SASRec"
        log = (folder / "run.log").read_text()
        assert "epoch 0 training" in log
        assert "\x1b" not in log

    def test_the_result_has_every_key(self, done, workplace):
        result = json.loads((workplace / done["path"]).read_text())
        assert {**result, "path": done["path"]} == done
        assert set(result) == KEYS
        keys = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (1, 5, 10)]
        assert list(result["valid"]) == list(result["test"]) == [*keys, "mrr"]
        assert list(result["seconds"]) == ["load", "pretrain", "finetune", "evaluate", "total"]
        assert result["status"] == "finished"
        assert result["epochs"] == 2
        assert result["best_epoch"] in (0, 1)
        assert result["protocol"]["filter_history"] is False
        assert result["parameters"] > 0
        assert 0 < result["peak_memory_gib"] < 64
        assert set(result["statistics"]) == {
            "users",
            "items",
            "interactions",
            "average_length",
            "density",
        }

    def test_the_metrics_are_those_of_the_ranks_of_the_users(self, done, workplace):
        rows = pd.read_parquet((workplace / done["path"]).with_name("per_user.parquet"))
        assert list(rows) == [
            "user_id",
            "target_item",
            "history_length",
            "rank",
            "target_train_count",
        ]
        assert rows["rank"].dtype == "float64"
        metrics = mean_metrics(rows["rank"].to_numpy(), ["Recall", "NDCG", "MRR"], [1, 5, 10])
        assert metrics == done["test"]

    @pytest.mark.parametrize("model", ["Popularity", "GRU4Rec"])
    def test_what_lists_are_like_is_measured_where_asked(self, model, toy, workplace):
        names = ["NDCG", "Coverage", "Novelty", "Average_Popularity"]
        found = run(model, config_dict={**toy, **TINY, "epochs": 1, "metrics": names})
        keys = ["ndcg@10", "mrr", "coverage@10", "novelty@10", "average_popularity@10"]
        assert list(found["valid"]) == list(found["test"]) == keys
        if model == "Popularity":  # the same ten of thirty items for everybody
            assert found["test"]["coverage@10"] == pytest.approx(1 / 3)

    def test_the_rows_are_the_raw_ids_of_the_test_split(self, done, workplace):
        rows = pd.read_parquet((workplace / done["path"]).with_name("per_user.parquet"))
        options = {"sep": "\t", "quoting": 3, "keep_default_na": False, "dtype": str}
        raw = pd.read_csv(ROOT / "dataset" / "toy" / "toy.inter", **options)
        raw.columns = ["user_id", "item_id", "time"]
        raw = raw.assign(time=raw["time"].astype(float)).sort_values("time", kind="stable")
        users = {user: list(part["item_id"]) for user, part in raw.groupby("user_id")}
        tested = {user: items for user, items in users.items() if len(items) >= 3}
        training = [i for u, items in users.items() for i in (items[:-2] if u in tested else items)]
        expected = {
            user: (items[-1], len(items) - 1, training.count(items[-1]))
            for user, items in tested.items()
        }
        columns = ["target_item", "history_length", "target_train_count"]
        found = zip(rows["user_id"], rows[columns].itertuples(index=False, name=None), strict=True)
        assert dict(found) == expected

    def test_a_saved_config_repeats_the_run(self, done, workplace):
        config = (workplace / done["path"]).with_name("config.yaml")
        assert "run_dir" not in yaml.safe_load(config.read_text())
        again = run(config_files=[config])
        assert again["path"] != done["path"]
        assert (again["test"], again["valid"]) == (done["test"], done["valid"])
        assert again["data_fingerprint"] == done["data_fingerprint"]

    def test_the_command_asks_for_the_same_run(self, done):
        assert done["command"].startswith("python run_recbole.py --model=SASRec --dataset=toy ")
        assert "'--topk=[1, 5, 10]'" in done["command"]


@pytest.mark.parametrize("model", ["Popularity", "Markov", "GRU4Rec", "BERT4Rec"])
def test_models_run(model, workplace, toy):
    settings = {**toy, **TINY, "embedding_size": 8, "epochs": 0 if model[0] in "PM" else 1}
    result = run(model, config_dict=settings)
    assert list(result["test"]) == METRICS
    assert 0 < result["test"]["mrr"] < 1


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("Markov", "Markov"),
        ("SASRec", "SASRec-CE"),
        ("SASRec-BPR", "SASRec-BPR"),
        ("FPMC", "FPMC-BPR"),
    ],
)
def test_a_row_is_called_by_model_and_loss(model, label, workplace, toy):
    result = run(model, config_dict={**toy, **TINY, "embedding_size": 8, "epochs": 0})
    assert (result["label"], result["model"]) == (label, label.partition("-")[0])


def test_a_model_may_name_its_row(workplace, toy, monkeypatch):
    monkeypatch.setattr(find_model("Markov"), "label", "Markov (first order)", raising=False)
    assert run("Markov", config_dict=toy)["label"] == "Markov (first order)"


def test_the_learning_curve_goes_through_all_phases(workplace, toy):
    small = {"hidden_size": 16, "vocab_size": 300, "epochs": 2, "frozen_items_epochs": 1}
    settings = {**toy, **small, "cache_dir": "cache", "show_progress": False}
    result = run("JEPA4Rec", config_dict=settings)
    curve = result["learning_curve"]
    points = [(point["stage"], point["epoch"]) for point in curve]
    stages = ["pretrain", "finetune", "finetune", "finetune_frozen_items"]
    assert points == list(zip(stages, range(4), strict=True))
    seconds = [point["seconds"] for point in curve]
    assert seconds == sorted(seconds)
    assert max(p["valid"] for p in curve[1:]) == result["valid"]["ndcg@10"]


def test_bert4rec_trains_on_batches_in_which_nothing_is_masked(workplace, toy):
    settings = {**toy, **TINY, "train_batch_size": 1, "epochs": 1}
    assert run("BERT4Rec", config_dict=settings)["test"]["mrr"] > 0


def test_a_run_folder_can_be_chosen_and_is_not_overwritten(workplace, words, capsys):
    assert main([*words, "--run_dir=here/it/is"]) == 0
    assert capsys.readouterr().out == "here/it/is/result.json\n"
    before = (workplace / "here/it/is/result.json").read_text()
    assert main([*words, "--run_dir=here/it/is"]) == 2
    error = capsys.readouterr().err
    assert error == "error: run_dir 'here/it/is' already holds result.json\n"
    assert (workplace / "here/it/is/result.json").read_text() == before


def test_weights_of_another_run_are_a_start(workplace, words):
    assert main([*words, "--run_dir=first"]) == 0
    words = without(words, "epochs")
    assert main([*words, "--run_dir=second", "--epochs=0", "--checkpoint=first"]) == 0
    first, second = (
        json.loads((workplace / name / "result.json").read_text()) for name in ("first", "second")
    )
    assert second["test"] == first["test"]
    assert second["checkpoint_from"] == os.path.join("first", "model.safetensors")


class TestErrors:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--model=SASRek", "unknown model 'SASRek' (did you mean 'SASRec'?)"),
            ("--dataset=ml-100", "no data set 'ml-100'"),
            ("--dataset=tow", "did you mean 'toy'?"),
            ("--epoch=3", "unknown key 'epoch' (did you mean 'epochs'?) on the command line"),
            ("--config_files=no.yaml", "cannot read config file no.yaml"),
            ("--checkpoint=nowhere", "checkpoint 'nowhere'"),
            ("--USER_ID_FIELD=who", "'who'"),
            ("--model=FOSSIL-TOP1", "allowed: FOSSIL, FOSSIL-CE, FOSSIL-BPR"),
            ("--model=FPMC-CE", "loss_type 'CE' is unknown to model 'FPMC'"),
            ("--loss_type=TOP1", "loss_type is 'TOP1'; allowed: CE, BPR"),
            ("--learning_rate=1e30", "try a learning_rate below 1e+30"),
            ("--hidden_act=foo", "hidden_act 'foo' is unknown to model 'SASRec'"),
            ("--run_dir=/proc/x", "run_dir '/proc/x' cannot be made: "),
        ],
    )
    def test_one_line_and_status_2(self, workplace, words, word, message, capsys):
        key = word[2:].partition("=")[0]
        words = without(words, key, *(SIZES if key == "model" else ()))
        assert main([*words, word, "--state=error"]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not list(workplace.rglob("result.json"))

    def test_a_model_of_recboles_that_exits_is_one_line(self, workplace, words, capsys):
        words = without(words, "model", *SIZES, "train_batch_size")
        assert main([*words, "--model=GRU4RecCPR-BPR", "--state=error"]) == 2
        error = capsys.readouterr().err
        assert error == "error: loss_type 'BPR' is unknown to model 'GRU4RecCPR'\n"

    def test_one_step_that_diverges_names_model_and_learning_rate(self, workplace, words, capsys):
        words = [*without(words, "train_batch_size"), "--train_batch_size=4096"]
        assert main([*words, "--run_dir=diverged", "--learning_rate=1e30", "--state=error"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: SASRec's ")
        assert "not numbers after epoch 0: training diverged; try a learning_rate below" in error
        assert error.count("\n") == 1

    def test_what_ended_a_run_is_in_its_log(self, workplace, words, capsys):
        assert main([*words, "--learning_rate=1e30"]) == 2
        (log,) = workplace.rglob("run.log")
        assert "Traceback" in log.read_text()
        assert "Traceback" not in capsys.readouterr().err

    def test_whatever_else_goes_wrong_is_one_line(self, workplace, words, monkeypatch, capsys):
        def fail(*_):
            raise TypeError("a fault\nof ours")

        monkeypatch.setattr(single_run, "per_user", fail)
        assert main([*words, "--run_dir=out", "--state=error"]) == 1
        log = os.path.join("out", "run.log")
        expected = f"error: TypeError: a fault of ours (details in {log})\n"
        assert capsys.readouterr().err == expected
        assert "Traceback" in (workplace / log).read_text()
        assert not (workplace / "out" / "result.json").exists()
        monkeypatch.setattr(quick_start, "run", lambda **_: fail())
        assert main(words) == 1
        *trace, last = capsys.readouterr().err.splitlines()
        assert last == "error: TypeError: a fault of ours"
        assert trace[0].startswith("Traceback")  # which no log holds

    @pytest.mark.parametrize(("model", "status"), [("SASRec", 2), ("Popularity", 0)])
    def test_without_training_rows_no_epoch_works(self, workplace, words, model, status, capsys):
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        rows = "".join(f"{user}\t{item}\t{item}\n" for user in "uvw" for item in (1, 2, 3))
        (workplace / "short").mkdir()
        (workplace / "short" / "short.inter").write_text(header + rows)
        words = without(words, "dataset", "data_path", "epochs", "model", *SIZES)
        words += ["--dataset=short", "--data_path=.", f"--model={model}"]
        assert main([*words, "--epochs=0"]) == 0
        capsys.readouterr()
        assert main([*words, "--epochs=1"]) == status  # one that counts trains in none
        if status:
            error = capsys.readouterr().err
            assert error == "error: data set 'short': no user has 2 interactions to train on\n"
            (warning,) = problems(Path("short"))
            assert not warning.fatal and error.endswith(f": {warning.what}\n")

    @pytest.mark.parametrize("command", [main, compare, search])
    def test_nobody_to_test(self, workplace, words, capsys, command):
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        (workplace / "short").mkdir()
        (workplace / "short" / "short.inter").write_text(f"{header}u\ti\t1\nu\tj\t2\nv\ti\t3\n")
        words = [*without(words, "dataset", "data_path"), "--dataset=short", "--data_path=."]
        if command is compare:
            words = [*without(words, "model"), "--model_list=SASRec"]
        if command is search:
            Path("space.yaml").write_text("weight_decay: {choice: [0, 0.1]}\n")
            words.append("--search=space.yaml")
        assert command(words) == 2
        error = "data set 'short': no user has at least 3 interactions"
        assert capsys.readouterr().err == f"error: {error}\n"
        assert not (workplace / "runs").exists()
        (problem,) = problems(Path("short"))
        assert problem.fatal and error.endswith(f": {problem.what}")

    def test_an_interrupted_run_says_so(self, words, monkeypatch, capsys):
        def interrupt(**_):
            raise KeyboardInterrupt

        monkeypatch.setattr(quick_start, "run", interrupt)
        assert main(words) == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_an_interrupted_run_names_its_folder(self, workplace, words, monkeypatch, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(single_run, "build_model", interrupt)
        assert main([*words, "--run_dir=out", "--state=error"]) == 130
        assert capsys.readouterr().err.splitlines()[-1] == "interrupted; --resume=out goes on"

    def test_sigterm_ends_a_run_with_a_line_in_its_log(self, workplace, words, monkeypatch):
        monkeypatch.setattr(
            single_run, "build_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            main([*words, "--run_dir=out"])
        assert ended.value.code == RESUMABLE
        assert "told to end (SIGTERM)" in (workplace / "out" / "run.log").read_text()
        assert not (workplace / "out" / "result.json").exists()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_full_disk_leaves_no_half_file(self, workplace, words):
        limit = 20_000  # bytes: the log and the settings fit, the weights do not
        done = script(
            *without(words, "hidden_size", "inner_size"),
            "--hidden_size=64",
            "--inner_size=64",
            "--run_dir=full",
            folder=workplace,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 1
        assert done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert "cannot write" in last
        assert os.path.join("full", "state.pt") in last
        left = {path.name for path in (workplace / "full").iterdir()}
        assert {name for name in left if "tfevents" not in name} == {"config.yaml", "run.log"}


def test_the_script(workplace, words):
    done = script(*words, "--run_dir=out", folder=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out/result.json\n"
    assert "epoch 1 training" in done.stderr
    assert "it/s" not in done.stderr  # no progress bars where standard error is no terminal


def test_the_doctor_names_versions_and_what_is_missing(workplace):
    command = [sys.executable, "-m", "recbole_jepa4rec", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "recbole " in done.stdout
    assert "threads " in done.stdout
    assert "torch is built for" in done.stdout
    assert "nothing is missing" in done.stdout


def test_the_doctor_names_versions_that_are_too_old(monkeypatch):
    old = {"torch": "2.5.1+cpu", "pyarrow": "14.0.0", "pandas": "3.0.0", "recbole": "1.2.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: old.get(name, "99"))
    assert [fault for fault, _ in doctor._faults()] == [
        "recbole is 1.2.0; supported: ==1.2.1",
        "torch is 2.5.1+cpu; supported: >=2.6",
        "pandas is 3.0.0; supported: <3,>=2.2",
        "pyarrow is 14.0.0; supported: >=14.0.1",
    ]


@pytest.mark.parametrize("name", ["torch", "pyarrow", "pandas"])
def test_what_pip_is_asked_for_is_what_the_doctor_looks_for(name):
    lines = (ROOT / "requirements" / "core.txt").read_text().splitlines()
    assert doctor.REQUIRED[name] in lines


SIZES = ("hidden_size", "inner_size", "n_layers", "n_heads")
"""Keys of ``words`` that other models than Transformers do not read."""


def without(words, *keys):
    """A command line less some keys."""
    return [word for word in words if word[2:].partition("=")[0] not in keys]


def script(*words, folder, **options):
    """Run ``run_recbole.py`` as a user does."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run_recbole.py"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_what_is_asked_reaches_every_process(workplace, toy, monkeypatch):
    told = []

    def tell(words, **places):
        told.extend([words, places])
        return 3

    monkeypatch.setattr(launch, "launch", tell)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    settings = {**toy, "nproc": 2, "use_gpu": False, "cache_dir": "${local_rank} of $HOME"}
    with pytest.raises(SystemExit) as ended:
        run("RecFormer", config_dict=settings, config_files=(), command_line=["--epochs=3"])
    assert ended.value.code == 3
    (*module, text), places = told
    assert module == ["-m", "recbole_jepa4rec", "worker"]
    assert "$" not in text  # the launcher would fill it in
    asked, run_dir, command = json.loads(text)
    assert asked == ["RecFormer", None, [], settings, ["--epochs=3"]]
    assert run_dir.startswith(os.path.join("runs", "toy", "RecFormer"))
    assert command.endswith("--epochs=3")
    assert places == {
        **{"nproc": 2, "ip": "localhost", "port": None},
        **{"world_size": None, "group_offset": 0},
    }
