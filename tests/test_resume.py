"""Runs that end early and go on: to the bit what they would have been."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import read_weights
from recbole_jepa4rec.base.files import hold
from recbole_jepa4rec.base.stopping import begin_worker
from recbole_jepa4rec.runner.quick_start import RESUMABLE, main, run
from recbole_jepa4rec.runner.resume import asked_config
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.training.checkpoints import CheckpointFolder
from recbole_jepa4rec.training.state import random_state, restore_random_state
from tests.conftest import ROOT, TINY

TEXT = {
    "hidden_size": 8,
    "num_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 200,
    "train_batch_size": 16,
    "pretrain_batch_size": 16,
    "pretrain_epochs": 2,
    "epochs": 2,
    "frozen_items_epochs": 1,
    "dropout": 0.1,
}
VIEWS = {
    **{"hidden_size": 8, "intermediate_size": 16, "vocab_size": 200, "max_attribute_tokens": 8},
    **{"train_batch_size": 16, "pretrain_batch_size": 16, "pretrain_epochs": 2, "epochs": 2},
}
VECTORS = {
    **{"hidden_size": 8, "n_layers": 1, "n_heads": 2, "inner_size": 16, "max_text_tokens": 32},
    **{"train_batch_size": 16, "pretrain_batch_size": 16, "pretrain_epochs": 1, "epochs": 2},
}
CODES = {**VECTORS, "code_digits": 4, "code_values": 8, "permutation_epochs": 2}
ID = {**TINY, "train_batch_size": 128, "epochs": 3}
MODELS = {
    "JEPA4Rec": TEXT,
    "JEPA4Rec, table of the epoch": {**TEXT, "items_per_step": 0, "pretrain_epochs": 0},
    "JEPA4Rec, frozen layers": {
        **{**TEXT, "num_layers": 2, "item_local_layers": 1, "frozen_layers": 1},
        **{"pooling": "mean", "whitening": True, "layer_decay": 0.5},
    },
    "JEPA4Rec, rollouts": {**TEXT, "rollout_steps": 3},
    "JEPA4Rec, added gradients": {**TEXT, "accumulation_steps": 2, "learner": "sgd"},
    "SASRec": ID,
    "SASRec-BPR": ID,
    "BERT4Rec": ID,
    "GRU4Rec": {"embedding_size": 8, "hidden_size": 8, "train_batch_size": 128, "epochs": 3},
    "S3Rec": {**ID, "epochs": 2, "pretrain_epochs": 2, "pretrain_batch_size": 128},
    "LLMJEPA": {**VIEWS, "jepa_dropout": 0.5},
    "LLMJEPA, table of the epoch": {**VIEWS, "items_per_step": 0, "pretrain_epochs": 0},
    "UniSRec": VECTORS,
    "VQRec": CODES,
    "VQRec, another catalogue": {**CODES, "checkpoint": "before", "max_text_tokens": 16},
}


class Killed(BaseException):
    """What a test ends a run with; no code catches it, so that nothing is tidied up."""


@pytest.fixture
def settings(workplace):
    def of(name):
        return {
            "model": name.partition(",")[0],
            "dataset": "toy",
            "data_path": str(ROOT / "dataset"),
            "checkpoint_steps": 1,
            "show_progress": False,
            "state": "warning",
            "cache_dir": "cache",
            **MODELS[name],
        }

    return of


def killing(monkeypatch, after):
    """Let a run die right after it wrote so many checkpoints; returns how many were written."""
    write, written = CheckpointFolder.write, []

    def write_and_die(self, state):
        written.append(write(self, state))
        if len(written) == after:
            raise Killed

    monkeypatch.setattr(CheckpointFolder, "write", write_and_die)
    return written


def outcome(folder):
    result = json.loads((folder / "result.json").read_text())
    curve = [{k: v for k, v in p.items() if k != "seconds"} for p in result["learning_curve"]]
    return {
        **{key: result[key] for key in ("valid", "test", "epochs", "best_epoch", "command")},
        "curve": curve,
        "pretrain_datasets": result["pretrain_datasets"],
        "per_user": pd.read_parquet(folder / "per_user.parquet").to_dict("list"),
    }, read_weights(folder / "model.safetensors")[0]


def assert_equal(found, wanted):
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    for name, tensor in wanted[1].items():
        assert torch.equal(found[1][name], tensor), name


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(name, settings, workplace, monkeypatch):
    if "checkpoint" in settings(name):
        run(config_dict={**settings("VQRec"), "run_dir": "before"})
    with monkeypatch.context() as patch:
        written = killing(patch, after=None)
        run(config_dict={**settings(name), "run_dir": "a"})
    wanted = outcome(workplace / "a")
    for after in sorted({*np.linspace(1, len(written), 4).astype(int)}):
        folder = f"b{after}"
        with monkeypatch.context() as patch:
            killing(patch, after)
            with pytest.raises(Killed):
                run(config_dict={**settings(name), "run_dir": folder})
        run(config_dict={"resume": folder})
        found = outcome(workplace / folder)
        found[0]["command"] = found[0]["command"].replace(folder, "a")
        assert_equal(found, wanted)


@pytest.fixture
def unfinished(settings, workplace, monkeypatch):
    """Folder of a run that died after its second checkpoint."""
    with monkeypatch.context() as patch:
        killing(patch, after=2)
        with pytest.raises(Killed):
            run(config_dict={**settings("SASRec"), "run_dir": "run"})
    return workplace / "run"


def contents(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.log"
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume=run", "--learning_rate=0.5"], "of another run: learning_rate is 0.001 there"),
        (["--resume=run", "--model=GRU4Rec"], "run/config.yaml is of another run: model is "),
        (["--resume=run", "--run_dir=b"], "resume 'run' and run_dir 'b' differ"),
        (["--resume=nowhere"], "resume 'nowhere': no run began there (it has no config.yaml)"),
        (
            ["--model=SASRec", "--dataset=toy", f"--data_path={ROOT}/dataset", "--run_dir=run"],
            "holds an unfinished run (write",
        ),
    ],
)
def test_another_run_is_refused_and_nothing_is_lost(words, message, unfinished, capsys):
    before = contents(unfinished)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(unfinished) == before


def test_other_data_are_refused_and_nothing_is_lost(unfinished, workplace, capsys):
    source = ROOT / "dataset" / "toy"
    other = workplace / "other" / "toy"
    other.mkdir(parents=True)
    (other / "toy.item").write_bytes((source / "toy.item").read_bytes())
    lines = (source / "toy.inter").read_text().splitlines(keepends=True)
    (other / "toy.inter").write_text("".join(lines[:-1]))
    before = contents(unfinished)
    assert main(["--resume=run", "--data_path=other"]) == 2
    assert "checkpoints is of another run: data_fingerprint is " in capsys.readouterr().err
    assert contents(unfinished) == before


def test_what_does_not_change_the_result_may_differ(unfinished):
    assert (
        run(config_dict={"resume": "run", "state": "warning", "checkpoint_steps": 2})["starts"] == 2
    )


def test_a_finished_run_is_refused(unfinished, capsys):
    run(config_dict={"resume": "run"})
    assert not (unfinished / "checkpoints").exists()
    assert main(["--resume=run"]) == 2
    assert capsys.readouterr().err == (
        "error: resume 'run': the run is finished (--checkpoint starts from its weights)\n"
    )


def test_a_run_without_checkpoint_starts_over(unfinished, settings):
    for file in (unfinished / "checkpoints").iterdir():
        file.unlink()
    resumed = run(config_dict={"resume": "run"})
    whole = run(config_dict={**settings("SASRec"), "run_dir": "whole"})
    assert resumed["test"] == whole["test"] and resumed["starts"] == 1


def test_two_programs_do_not_write_one_folder(unfinished, capsys):
    with open(unfinished / "run.log", "a", encoding="utf-8") as file:
        assert hold(file)
        assert main(["--resume=run"]) == 2
    assert "run_dir 'run' is in use by another run" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(unfinished, settings):
    _, newer = sorted((unfinished / "checkpoints").iterdir())
    newer.write_bytes(newer.read_bytes()[:-1] + b"x")
    resumed = run(config_dict={"resume": "run"})
    assert (
        f"{newer.relative_to(unfinished.parent)} is damaged" in (unfinished / "run.log").read_text()
    )
    assert resumed["test"] == run(config_dict={**settings("SASRec"), "run_dir": "whole"})["test"]
    assert resumed["starts"] == 2


def a_link_to_nothing(path):
    path.unlink()
    path.symlink_to("nowhere")


def a_folder(path):
    path.unlink()
    path.mkdir()


def unreadable(path, monkeypatch):
    read = Path.read_bytes

    def read_all_but_one(self):
        if self == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", read_all_but_one)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (a_link_to_nothing, "No such file or directory"),
        (a_folder, "Is a directory"),
        (unreadable, "Input/output error"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    spoil, reason, unfinished, settings, monkeypatch
):
    _, newer = sorted(Path("run/checkpoints").iterdir())
    spoil(newer, monkeypatch) if spoil is unreadable else spoil(newer)
    resumed = run(config_dict={"resume": "run"})
    said = f"{newer} cannot be read ({reason}) and is not used"
    assert (unfinished / "run.log").read_text().count(said) == 1
    assert resumed["starts"] == 2
    assert resumed["test"] == run(config_dict={**settings("SASRec"), "run_dir": "whole"})["test"]
    left = [newer] if spoil in (a_link_to_nothing, a_folder) else []  # no run has made them
    assert [*Path("run").glob("checkpoints/*")] == left


def test_what_is_damaged_is_none_of_the_two_that_are_kept(tmp_path):
    first = CheckpointFolder(tmp_path / "checkpoints")
    files = [first.write({"number": number}) for number in (1, 2)]
    files[1].write_bytes(b"damaged")
    after = CheckpointFolder(tmp_path / "checkpoints")  # as the run that goes on has it
    files.append(after.write({"number": 3}))
    assert sorted((tmp_path / "checkpoints").iterdir()) == files
    files[2].write_bytes(b"damaged too")
    assert CheckpointFolder(tmp_path / "checkpoints").newest() == {"number": 1}
    again = CheckpointFolder(tmp_path / "checkpoints")
    files += [again.write({"number": number}) for number in (4, 5)]
    assert sorted((tmp_path / "checkpoints").iterdir()) == files[3:]


def test_what_others_have_put_beside_checkpoints_stays(unfinished):
    (unfinished / "checkpoints" / "notes.txt").write_text("mine")
    run(config_dict={"resume": "run"})
    assert [path.name for path in (unfinished / "checkpoints").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_a_run_older_than_training_targets_goes_on_by_rows(name, settings, workplace, monkeypatch):
    given = {**settings(name), "training_targets": "rows"}
    run(config_dict={**given, "run_dir": "whole"})
    with monkeypatch.context() as patch:
        killing(patch, after=2)
        with pytest.raises(Killed):
            run(config_dict={**given, "run_dir": "run"})
    file = workplace / "run" / "config.yaml"
    written = yaml.safe_load(file.read_text())
    del written["training_targets"]
    file.write_text(yaml.safe_dump(written))
    assert main(["--resume=run", "--training_targets=all_prefixes"]) == 2
    run(config_dict={"resume": "run"})
    found, wanted = outcome(workplace / "run"), outcome(workplace / "whole")
    found[0].pop("command"), wanted[0].pop("command")
    assert_equal(found, wanted)


def test_a_worker_does_not_hold_the_folder_of_a_run_that_was_killed(unfinished):
    """It notices after seconds that the process which trained is gone."""
    folder = RunFolder(unfinished)
    context = multiprocessing.get_context("fork")
    begun, done = context.Event(), context.Event()

    def work():
        begin_worker(0)
        begun.set()
        done.wait(60)

    with folder.writing("info", resume=True):
        worker = context.Process(target=work)
        worker.start()
        assert begun.wait(60)
    with folder.writing("info", resume=True):  # refused while anybody holds it
        done.set()
    worker.join()


def test_no_checkpoint_that_is_whole_is_refused(unfinished, capsys):
    for file in (unfinished / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    before = contents(unfinished)
    assert main(["--resume=run"]) == 2
    assert "no checkpoint in run/checkpoints is whole" in capsys.readouterr().err
    assert contents(unfinished) == before


@pytest.mark.parametrize("name", ["JEPA4Rec", "SASRec", "S3Rec"])
def test_sigterm_in_training_writes_a_checkpoint(name, settings, workplace, monkeypatch, capsys):
    backward = torch.Tensor.backward
    steps = []

    def backward_and_signal(self, *rest, **more):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, *rest, **more)

    given = {**settings(name), "checkpoint_steps": None}
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", backward_and_signal)
        with pytest.raises(SystemExit) as ended:
            main([*(f"--{key}={value}" for key, value in given.items()), "--run_dir=run"])
    assert ended.value.code == RESUMABLE
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; --resume=run goes on"
    assert len(steps) == 3
    run(config_dict={"resume": "run"})
    run(config_dict={**given, "run_dir": "whole"})
    found, wanted = outcome(workplace / "run"), outcome(workplace / "whole")
    found[0].pop("command"), wanted[0].pop("command")
    assert_equal(found, wanted)


def test_each_process_goes_on_with_random_numbers_of_its_own(monkeypatch):
    torch.manual_seed(1)
    state = random_state()
    torch.manual_seed(2)
    state["torch"] = torch.cat([state["torch"], random_state()["torch"]])
    state["cuda"] = state["cuda"].expand(2, -1)
    wanted = torch.rand(3)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_that_end_early_go_on(number, settings, workplace):
    given = {**settings("JEPA4Rec"), "nproc": 2, "epochs": 30, "stopping_step": 0}
    run(config_dict={**given, "run_dir": "whole"})
    words = [f"--{key}={value}" for key, value in given.items()]
    command = [sys.executable, str(ROOT / "run_recbole.py"), *words, "--run_dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while len([*workplace.glob("run/checkpoints/*.pt")]) < 2:
            time.sleep(0.01)
        told = process.pid if number == signal.SIGTERM else children_of(process.pid)[-1]
        os.kill(told, number)
        assert process.wait(120) == (RESUMABLE if number == signal.SIGTERM else 128 + number)
    assert run(config_dict={"resume": "run"})["starts"] == 2
    found, wanted = outcome(workplace / "run"), outcome(workplace / "whole")
    found[0].pop("command"), wanted[0].pop("command")
    assert_equal(found, wanted)


def children_of(pid):
    """Processes of a run, as its launcher started them."""
    found = psutil.Process(pid).children()
    return [child.pid for child in found if "worker" in " ".join(child.cmdline())]


def test_a_run_that_ended_meanwhile_is_not_written_over(workplace, toy):
    settings = {**TINY, **toy, "epochs": 1, "run_dir": "run"}
    late = RunFolder.of(asked_config("SASRec", config_dict=settings))  # the other has not begun yet
    result = Path(run("SASRec", config_dict=settings)["path"])
    written = {path: path.read_bytes() for path in workplace.glob("run/*.*")}
    for resume, message in ((False, "already holds result.json"), (True, "the run is finished")):
        with pytest.raises(ValueError, match=message), late.writing("info", resume):
            result.write_text("lost")
    assert {path: path.read_bytes() for path in workplace.glob("run/*.*")} == written


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json"])
def test_a_folder_with_somebody_s_files_is_refused(name, workplace, toy):
    (workplace / "mine").mkdir()
    (workplace / "mine" / name).write_text("precious")
    with pytest.raises(ValueError, match=f"holds {name}, which no run of ours has written"):
        run("SASRec", config_dict={**TINY, **toy, "epochs": 1, "run_dir": "mine"})
    assert [path.read_text() for path in (workplace / "mine").iterdir()] == ["precious"]
    (workplace / "mine" / "run.log").write_text("of somebody's own program")
    with pytest.raises(ValueError, match=f"holds {name}, which no run of ours has written"):
        run("SASRec", config_dict={**TINY, **toy, "epochs": 1, "run_dir": "mine"})
    assert (workplace / "mine" / name).read_text() == "precious"


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(workplace, toy, monkeypatch):
    given = {**TINY, **toy, "epochs": 1, "run_dir": "run"}
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("SASRec", config_dict=given)
    assert (workplace / "run" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"holds weights of another run: learning_rate is 0\.001"):
        run("SASRec", config_dict={**given, "learning_rate": 0.1})
    assert run("SASRec", config_dict=given)["starts"] == 1
