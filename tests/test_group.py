"""``run_recbole_group.py``: what it refuses, runs, skips and survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from recbole_jepa4rec.__main__ import main as package_main
from recbole_jepa4rec.base.files import locked
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.study import grid, group
from recbole_jepa4rec.study.cells import finished_runs
from recbole_jepa4rec.study.group import main, read_request
from recbole_jepa4rec.training.checkpoints import CheckpointFolder
from tests.conftest import ROOT, TINY

BASE = ["--dataset=toy", f"--data_path={ROOT / 'dataset'}", "--show_progress=False"]
VIEWS = [f"comparison.{kind}" for kind in ("json", "md", "tex", "html")]


def script(*words, **options):
    """The script as a user runs it, in a process of its own."""
    command = [sys.executable, str(ROOT / "run_recbole_group.py"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model_list=Markof"], "unknown model 'Markof' (did you mean 'Markov'?)"),
            (["--model_list=Markov,,SASRec"], "model_list 'Markov,,SASRec' holds an empty name"),
            ([], "no model is named (write --model_list=A,B,C)"),
            (["--model_list=A,A"], "model_list 'A,A' names 'A' twice"),
            (["--model_list=SASRec,SASRec-CE"], "'SASRec' and 'SASRec-CE', which are the same"),
            (["--model_list=Markov", "--seeds=1,2,1"], "seeds '1,2,1' names 1 twice"),
            (["--model_list=Markov", "--seeds=7,07"], "seeds '7,7' names 7 twice"),
            (
                ["--model_list=Markov", "--seeds=4294967296"],
                "seeds '4294967296' must be a whole number from 0 to 4294967295",
            ),
            (
                ["--model_list=Markov", f"--seeds={'9' * 5000}"],
                "must be a whole number from 0 to 4294967295",
            ),
            (["--model_list=Markov", "--seeds=one"], "seeds 'one' must be a whole number from 0"),
            (["--model_list=Markov", "--jobs=0"], "jobs '0' must be a whole number from 1"),
            (
                ["--model_list=Markov", "--reference=SASRec"],
                "reference 'SASRec' is not in model_list (allowed: Markov)",
            ),
            (
                ["--model_list=Markov", "--seed=3"],
                "key 'seed' on the command line differs from run",
            ),
            (["--model_list=Markov", "--model=SASRec"], "key 'model' on the command line differs"),
            (["--model_list=Markov", "--sedes=1"], "unknown key 'sedes' (did you mean 'seeds'?)"),
            (["--model_list=Markov", "--epochs=-1"], "epochs -1 must be a whole number from 0"),
            (["--model_list=Markov,SASRec", "--topk=0"], "topk 0 must be a whole number from 1"),
            (["--model_list=Markov", "--config_files=no.yaml"], "cannot read config file no.yaml"),
            (["--model_list=Markov", "--run_dir=file"], "run_dir 'file' is not a folder"),
        ],
    )
    def test_one_line_and_nothing_runs(self, workplace, words, message, capsys):
        (workplace / "file").write_text("")
        assert main([*BASE, *words]) == 2
        out, error = capsys.readouterr()
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error and out == ""
        assert [path.name for path in workplace.iterdir()] == ["file"]

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--dataset=tow", "no data set 'tow'"),
            ("--dataset=toy,toy2", "allowed here is one data set"),
            ("--dataset=bare", "reads item text, which data set 'bare' lacks"),
        ],
    )
    def test_data_are_looked_at_before_anything_runs(self, workplace, word, message, capsys):
        (workplace / "bare").mkdir()
        inter = (ROOT / "dataset" / "toy" / "toy.inter").read_text()
        (workplace / "bare" / "bare.inter").write_text(inter)
        words = [word, "--data_path=.", "--model_list=Markov,JEPA4Rec", "--run_dir=out"]
        assert main(words) == 2
        assert message in capsys.readouterr().err
        assert not (workplace / "out").exists()

    def test_data_sets_named_in_a_file(self, workplace, capsys):
        (workplace / "a.yaml").write_text("dataset: toy,other\n")
        words = [BASE[1], "--model_list=Markov", "--config_files=a.yaml"]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error == "error: dataset 'toy,other': allowed here is one data set\n"

    def test_no_dataset(self, workplace, capsys):
        assert main(["--model_list=Markov"]) == 2
        assert "no dataset is named (write --dataset=NAME)" in capsys.readouterr().err

    @pytest.mark.parametrize("key", ["seed", "model", "run_dir"])
    def test_keys_of_single_runs_in_a_file(self, workplace, key, capsys):
        (workplace / "a.yaml").write_text(f"{key}: 3\n")
        assert main([*BASE, "--model_list=Markov", "--config_files=a.yaml"]) == 2
        assert f"key '{key}' in a.yaml differs from run to run" in capsys.readouterr().err

    def test_a_key_in_a_file_that_is_no_text(self, workplace, capsys):
        (workplace / "a.yaml").write_text("3: 4\n")
        assert main([*BASE, "--model_list=Markov", "--config_files=a.yaml"]) == 2
        assert capsys.readouterr().err == "error: unknown key '3' in a.yaml\n"

    def test_the_package_says_how_it_is_used(self, capsys):
        assert package_main(["nonsense"]) == 2
        assert "usage: recbole-jepa4rec COMMAND" in capsys.readouterr().err


class TestRequest:
    def test_cells_and_their_command_lines(self):
        words = [*BASE, "--model_list=SASRec-BPR,Markov", "--seeds=3,1", "--run_dir=out"]
        request = read_request([*words, "--epochs=2"])
        assert [(c.entry, c.seed) for c in request.cells] == [
            ("SASRec-BPR", 3),
            ("Markov", 3),
            ("SASRec-BPR", 1),
            ("Markov", 1),
        ]
        cell = request.cells[0]
        assert str(cell.folder) == "out/SASRec-BPR/seed-3"
        assert set(cell.words) == {
            *BASE,
            "--model=SASRec-BPR",
            "--seed=3",
            "--epochs=2",
            "--run_dir=out/SASRec-BPR/seed-3",
        }
        assert cell.settings["loss_type"] == "BPR"
        assert request.reference == "SASRec-BPR"
        assert request.given["epochs"] == 2

    def test_a_seed_is_the_number_that_its_text_stands_for(self):
        words = [*BASE, "--model_list=Markov", "--seeds=007,4294967295", "--run_dir=out"]
        cells = read_request(words).cells
        assert [cell.seed for cell in cells] == [7, 4294967295]
        assert "--seed=7" in cells[0].words and cells[0].folder.name == "seed-7"

    def test_jepa4rec_is_the_reference_where_it_is_listed(self):
        assert read_request([*BASE, "--model_list=Markov,JEPA4Rec"]).reference == "JEPA4Rec"
        words = ["--model_list=Markov,JEPA4Rec", "--reference=Markov"]
        assert read_request([*BASE, *words]).reference == "Markov"

    def test_the_folder_follows_what_is_asked_for(self):
        asked = ["--model_list=Markov,Popularity", "--seeds=1,2"]

        def folder(*words):
            return read_request([*BASE, *words]).folder

        assert folder(*asked) == folder(*reversed(asked), "--jobs=2", "--state=error")
        assert folder(*asked).parent.as_posix() == "runs/toy"
        others = [
            folder(asked[0], "--seeds=1,3"),
            folder("--model_list=Markov,SASRec", asked[1]),
            folder(*asked, "--topk=[5, 10]"),
        ]
        assert len({folder(*asked), *others}) == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of two models, run as two jobs."""
    folder = tmp_path_factory.mktemp("finished")
    words = [*BASE, "--model_list=Popularity,Markov", "--seeds=1", "--run_dir=out"]
    process = script(*words, "--jobs=2", cwd=folder)
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    return folder, words, out, error


class TestGrid:
    def test_every_cell_writes_its_folder_and_every_output_is_there(self, finished):
        folder, _, out, error = finished
        assert out == "out/comparison.json\n"
        cells = {str(path.parent.relative_to(folder / "out")) for path in stamps(folder)}
        assert cells == {"Popularity/seed-1", "Markov/seed-1"}
        assert {*VIEWS} <= {path.name for path in (folder / "out").iterdir()}
        comparison = json.loads((folder / "out" / "comparison.json").read_text())
        assert [(r["label"], r["seeds"]) for r in comparison["rows"]] == [
            ("Popularity", [1]),
            ("Markov", [1]),
        ]
        assert len(comparison["tests"]) == 4
        lines = error.splitlines()
        assert lines[0] == "2 runs in out, 0 of them finished before"
        assert len(lines) == 3
        assert "Markov, seed 1: ndcg@10 0." in error and "none left" in lines[-1]

    def test_finished_cells_are_not_run_again(self, finished, monkeypatch, capsys):
        folder, words, _, _ = finished
        before = stamps(folder)
        monkeypatch.chdir(folder)
        (folder / "out" / "comparison.md").unlink()
        assert main(words) == 0
        assert stamps(folder) == before
        assert (folder / "out" / "comparison.md").exists()
        assert "2 of them finished before" in capsys.readouterr().err

    def test_other_settings_are_refused_by_folder_and_key(self, finished, monkeypatch, capsys):
        folder, words, _, _ = finished
        before = stamps(folder)
        monkeypatch.chdir(folder)
        assert main([*words, "--topk=[5, 10]"]) == 2
        error = capsys.readouterr().err
        assert "out/Popularity/seed-1 holds a run with topk [10], not [5, 10]" in error
        assert stamps(folder) == before

    def test_other_data_are_refused(self, finished, monkeypatch, capsys, tmp_path):
        folder, words, _, _ = finished
        monkeypatch.chdir(folder)
        text = (ROOT / "dataset" / "toy" / "toy.inter").read_text().splitlines(keepends=True)
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "toy.inter").write_text("".join(text[:-1]))
        others = [word for word in words if not word.startswith("--data_path")]
        assert main([*others, f"--data_path={tmp_path}"]) == 2
        assert "seed-1 holds a run with data_fingerprint '" in capsys.readouterr().err

    def test_a_damaged_run_is_run_again(self, finished, copied, instead_of_runs, capsys):
        folder, words, _, _ = finished
        instead_of_runs(f"cp -r '{folder}/out/Markov/seed-1' out/Markov")
        before = stamps(copied)
        file = copied / "out" / "Markov" / "seed-1" / "per_user.parquet"
        whole = file.read_bytes()
        file.write_bytes(whole[:100])
        assert main(words) == 0
        error = capsys.readouterr().err
        assert "Markov, seed 1, is run again: out/Markov/seed-1/per_user.parquet cannot" in error
        assert "1 of them finished before" in error
        assert file.read_bytes() == whole
        moved = {path for path, stamp in stamps(copied).items() if before[path] != stamp}
        assert moved == {file.with_name("result.json")}

    def test_what_is_no_run_is_not_removed(self, workplace, capsys):
        foreign = workplace / "out" / "Markov" / "seed-2020" / "thesis.txt"
        foreign.parent.mkdir(parents=True)
        foreign.write_text("years of work")
        assert main([*BASE, "--model_list=Markov", "--run_dir=out"]) == 2
        error = capsys.readouterr().err
        assert error == "error: out/Markov/seed-2020/thesis.txt is not of a run; move it away\n"
        assert foreign.read_text() == "years of work"

    @pytest.mark.parametrize("name", ["comparison.tex", "Markov/seed-2020.output.log"])
    def test_what_stands_where_a_comparison_would_write_is_refused(self, workplace, name, capsys):
        (workplace / "out" / "Markov").mkdir(parents=True)
        (workplace / "out" / name).write_text("years of work")
        assert main([*BASE, "--model_list=Markov", "--run_dir=out"]) == 2
        assert capsys.readouterr().err == (
            f"error: run_dir 'out' holds {name}, which this command has not written there; "
            "allowed: a new or empty folder\n"
        )
        assert (workplace / "out" / name).read_text() == "years of work"
        assert not (workplace / "out" / ".lock").exists()

    @pytest.mark.slow
    def test_a_failed_cell_leaves_the_others(self, workplace, capsys):
        settings = {"learning_rate": 1e30, "epochs": 2, "hidden_size": 8, "inner_size": 8}
        (workplace / "a.yaml").write_text(yaml.safe_dump(settings))
        words = [*BASE, "--model_list=SASRec,Markov", "--run_dir=out", "--config_files=a.yaml"]
        assert main(words) == 1
        out, error = capsys.readouterr()
        assert out == "out/comparison.json\n"
        assert "SASRec, seed 2020: failed: " in error and "training diverged" in error
        for name in VIEWS:
            text = (workplace / "out" / name).read_text()
            assert "training diverged" in text and "failed" in text and "Markov" in text
        rows = json.loads((workplace / "out" / "comparison.json").read_text())["rows"]
        assert [each["status"] for each in rows] == ["failed", "finished"]
        before = stamps(workplace)
        assert main(words) == 1  # the failed one is run again, the other is not
        assert stamps(workplace) == before


@pytest.fixture
def instead_of_runs(monkeypatch, tmp_path):
    """Sets a shell command that a comparison starts in place of each run."""

    def set_command(command):
        file = tmp_path / "command"
        file.write_text(f"#!/bin/sh\n{command}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return set_command


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of the finished comparison, to be changed; the working directory."""
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


class TestFinishedRuns:
    """What stands in the folders, without running anything."""

    @pytest.fixture
    def cells(self, finished):
        return read_request(finished[1]).cells

    @pytest.fixture
    def data(self, finished):
        result = json.loads((finished[0] / "out/Markov/seed-1/result.json").read_text())
        return SimpleNamespace(
            fingerprint=result["data_fingerprint"], text_fingerprint="0123456789abcdef"
        )

    @pytest.fixture
    def change(self, copied):
        """Changes a json or yaml file of Markov's run."""

        def change(name, **fields):
            file = copied / "out" / "Markov" / "seed-1" / name
            content = yaml.safe_load(file.read_text())
            for key, value in fields.items():
                *parents, last = key.split("__")
                holder = content
                for parent in parents:
                    holder = holder[parent]
                if value is ...:
                    del holder[last]
                else:
                    holder[last] = value
            file.write_text(json.dumps(content))

        return change

    def test_whole_runs_are_finished(self, cells, data, copied, capsys):
        assert [*finished_runs(cells, data)] == [("Popularity", 1), ("Markov", 1)]
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("name", ["result.json", "per_user.parquet", "config.yaml"])
    @pytest.mark.parametrize("kept", [None, 0, 20])
    def test_a_cut_or_missing_file_leaves_the_run_unfinished(
        self, cells, data, copied, capsys, name, kept
    ):
        file = copied / "out" / "Markov" / "seed-1" / name
        if kept is None:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:kept])
        assert [*finished_runs(cells, data)] == [("Popularity", 1)]
        error = capsys.readouterr().err
        if (name, kept) == ("result.json", None):
            assert error == ""  # a run that was killed, which is nothing to wonder at
        else:
            assert error.startswith("Markov, seed 1, is run again: ") and error.count("\n") == 1
            assert f"out/Markov/seed-1/{name}" in error

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"test": None}, "test is None, not a mapping"),
            ({"test__mrr": ...}, "test.mrr is missing"),
            ({"valid__mrr": None}, "valid.mrr is None"),
            ({"test__hit@1": 0.5}, "test.hit@1 was not asked for"),
            ({"valid__mrr": float("nan")}, "not json of finite numbers: Out of range float"),
            ({"seconds": None}, "seconds is None, not a mapping"),
            ({"seconds__total": "1 s"}, "seconds.total is '1 s'"),
            ({"statistics__items": ...}, "statistics.items is missing"),
            ({"protocol__filter_history": ...}, "protocol.filter_history is missing"),
            ({"learning_curve": 1}, "learning_curve is 1, not a list"),
            ({"learning_curve": [{"stage": "x", "seconds": 1}]}, "learning_curve.0.valid is miss"),
            ({"label": None}, "label is None"),
            ({"status": "running"}, "status is 'running', not 'finished'"),
        ],
    )
    def test_a_field_of_another_type(self, cells, data, change, capsys, fields, message):
        change("result.json", **fields)
        assert [*finished_runs(cells, data)] == [("Popularity", 1)]
        error = capsys.readouterr().err
        assert "out/Markov/seed-1/result.json" in error and message in error

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"topk": ...}, "has no key 'topk'"),
            ({"metrics": [3]}, "config.yaml: "),
            ({"topk": None}, "config.yaml: "),
            ({"valid_metric": "Recall@3"}, "valid_metric 'recall@3' is not among its metrics"),
        ],
    )
    def test_settings_without_metrics(self, cells, data, change, capsys, fields, message):
        change("config.yaml", **fields)
        assert [*finished_runs(cells, data)] == [("Popularity", 1)]
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("rank", float("nan"), "is nan, and 1 is the least"),
            ("rank", float("inf"), "is inf, and 1 is the least"),
            ("rank", 0.5, "is 0.5, and 1 is the least"),
            ("rank", "first", "rank holds no numbers"),
            ("target_train_count", -1, "is -1, and 0 is the least"),
            ("rank", [[1.0]], "rank holds no numbers"),
            ("user_id", [["u"]], "user_id holds more than texts"),
            ("target_item", [["i"]], "target_item holds more than texts"),
            ("target_item", [2**63 - 1], "target_item holds more than texts"),
        ],
    )
    def test_ranks_that_are_none(self, cells, data, copied, capsys, column, value, message):
        file = copied / "out" / "Markov" / "seed-1" / "per_user.parquet"
        users = pd.read_parquet(file)
        if isinstance(value, str):
            users[column] = value
        elif isinstance(value, list):
            users[column] = value * len(users)
        else:
            users.loc[1, column] = value
            message = f"{column} of user '{users['user_id'][1]}' {message}"
        users.to_parquet(file)
        assert [*finished_runs(cells, data)] == [("Popularity", 1)]
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["result.json", "config.yaml"])
    @pytest.mark.parametrize("number", [10**400, -(2**63), 2**53 + 1])
    def test_numbers_without_a_float(self, cells, data, change, capsys, name, number):
        change(name, seed=number)
        assert [*finished_runs(cells, data)] == [("Popularity", 1)]
        error = capsys.readouterr().err
        assert f"out/Markov/seed-1/{name}: seed is beyond 2^53" in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"test__ndcg@10": 0.9}, "test.ndcg@10 is 0.9, but the ranks in per_user.parquet give"),
            ({"test__mrr": -1}, "test.mrr is -1, but the ranks in per_user.parquet give 0."),
            ({"valid__mrr": 3}, "valid.mrr is 3, which no share is"),
            ({"model": "Popularity"}, "model is 'Popularity', but config.yaml has 'Markov'"),
            ({"seed": 2}, "seed is 2, but config.yaml has 1"),
            ({"statistics__items": 3}, "statistics.items is 3, but the rank of user '"),
            ({"statistics__items": 0}, "statistics.items is 0"),
        ],
    )
    def test_what_contradicts_the_other_files_is_refused_and_stays(
        self, finished, copied, change, capsys, fields, message
    ):
        change("result.json", **fields)
        files = [path for path in (copied / "out" / "Markov").rglob("*") if path.is_file()]
        before = {path: path.read_bytes() for path in files}
        assert main(finished[1]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: out/Markov/seed-1/result.json: {message}")
        assert error.count("\n") == 1
        assert {path: path.read_bytes() for path in before} == before

    def test_ranks_beyond_the_catalogue_are_refused(self, finished, copied, change, capsys):
        file = copied / "out" / "Markov" / "seed-1" / "per_user.parquet"
        users = pd.read_parquet(file)
        users["rank"] = 2.0**62
        users.to_parquet(file)
        change("result.json", **{f"test__{key}": 0.0 for key in ("recall@10", "ndcg@10")})
        assert main(finished[1]) == 2
        error = capsys.readouterr().err
        assert "statistics.items is 30, but the rank of user '" in error
        assert error.count("\n") == 1

    def test_a_setting_that_is_in_the_found_run_alone(self, cells, data, change):
        change("config.yaml", extra_depth=3)
        with pytest.raises(ValueError, match="seed-1 holds a run with extra_depth 3, not None"):
            finished_runs(cells, data)

    def test_other_item_text_is_refused(self, cells, data, change):
        change("result.json", text_fingerprint="f" * 16)
        message = "Markov/seed-1 holds a run with text_fingerprint 'f{16}', not '0123456789abcdef'"
        with pytest.raises(ValueError, match=message):
            finished_runs(cells, data)

    def test_the_command_refuses_other_item_text(self, finished, copied, change, capsys):
        before = stamps(copied)
        change("result.json", text_fingerprint="f" * 16)
        assert main(finished[1]) == 2
        error = capsys.readouterr().err
        found = "error: out/Markov/seed-1 holds a run with text_fingerprint 'ffffffffffffffff', not"
        assert error.startswith(found) and error.count("\n") == 1
        assert [*stamps(copied)] == [*before]

    def test_the_same_item_text_and_runs_that_read_none_pass(self, cells, data, change):
        change("result.json", text_fingerprint=data.text_fingerprint)
        assert len(finished_runs(cells, data)) == 2
        data.text_fingerprint = "f" * 16
        change("result.json", text_fingerprint=None)
        assert len(finished_runs(cells, data)) == 2

    def test_item_text_that_is_gone_is_refused(self, cells, data, change):
        class WithoutText(SimpleNamespace):
            @property
            def text_fingerprint(self):
                raise ValueError("no text")

        bare = WithoutText(fingerprint=data.fingerprint)
        assert len(finished_runs(cells, bare)) == 2
        change("result.json", text_fingerprint="f" * 16)
        with pytest.raises(ValueError, match=r"text_fingerprint 'f{16}', not None"):
            finished_runs(cells, bare)


class TestProcesses:
    def test_several_jobs_share_the_cores(self, monkeypatch):
        monkeypatch.setattr(grid, "_cores", lambda: 8)
        monkeypatch.delenv("OMP_NUM_THREADS")
        threads = [grid._environment(jobs).get("OMP_NUM_THREADS") for jobs in (1, 3, 20)]
        assert threads == [None, "2", "1"]
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert grid._environment(3)["OMP_NUM_THREADS"] == "5"

    def test_a_folder_in_use_is_refused(self, workplace, monkeypatch, capsys):
        monkeypatch.setattr(group, "PATIENCE", 0.2)
        with locked(workplace / "out", "comparison"):
            assert main([*BASE, "--model_list=Markov", "--run_dir=out"]) == 2
        error = capsys.readouterr().err.splitlines()
        assert error == [
            "waiting for the runs under way in out to end",
            "error: run_dir 'out' is in use by another comparison",
        ]

    def test_a_folder_is_in_use_until_the_last_run_of_a_killed_comparison_ends(
        self, workplace, instead_of_runs, monkeypatch, capsys
    ):
        monkeypatch.setattr(group, "PATIENCE", 0.2)
        words = [*BASE, "--model_list=Markov", "--run_dir=out"]
        (cell,) = read_request(words).cells
        with locked(workplace / "out", "comparison") as lock:
            runs = grid.Grid([cell], 1, lock)
            instead_of_runs("exec sleep 20")
            runs._start(cell)
        (orphan,) = (process for _, process, _ in runs._running)
        try:
            assert main(words) == 2
            assert "run_dir 'out' is in use by another comparison" in capsys.readouterr().err
        finally:
            orphan.kill()
            orphan.communicate()
        with locked(workplace / "out", "comparison"):
            pass

    @pytest.mark.parametrize(
        ("status", "output", "error"),
        [
            (2, "12:00 step\nerror: first\nerror: \x1b[31mlast\x1b[0m\nnoise\n", "last"),
            (1, "Traceback\nKeyError: 'x'\n\n", "KeyError: 'x'"),
            (1, "", "ended with status 1"),
            (-9, "error: nothing", "ended by signal 9 (out of memory?)"),
            (-11, "", "ended by signal 11"),
        ],
    )
    def test_what_went_wrong_is_the_last_error(self, workplace, status, output, error):
        (cell,) = read_request([*BASE, "--model_list=Markov", "--run_dir=out"]).cells
        cell.folder.parent.mkdir(parents=True)
        cell.output_file.write_text(output)
        assert grid._outcome(cell, status, 1.0) == grid.Outcome(cell, 1.0, None, error)

    def test_a_run_that_ends_well_without_a_result_has_failed(self, workplace):
        (cell,) = read_request([*BASE, "--model_list=Markov", "--run_dir=out"]).cells
        error = grid._outcome(cell, 0, 1.0).error
        assert error == f"{cell.folder / 'result.json'} cannot be read: No such file or directory"


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs_in(folder):
    """Process ids of runs that write below a folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
            except OSError:
                continue
            line = "\n".join(words)
            if "run" in words and any(f"--{key}={folder}" in line for key in ("run_dir", "resume")):
                found.append(int(entry))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
class TestEnds:
    @pytest.fixture
    def words(self, tmp_path):
        models, slow = (
            "--model_list=Markov,SASRec",
            ["--stopping_step=0", "--epochs=2000", "--train_batch_size=16"],
        )
        return [*BASE, models, *slow, f"--run_dir={tmp_path / 'out'}"]

    @pytest.fixture
    def in_the_second(self, words, tmp_path):
        """A comparison whose second run is under way."""
        process = script(*words, cwd=tmp_path)
        log = tmp_path / "out" / "SASRec" / "seed-2020" / "run.log"
        wait_for(lambda: log.exists() and "epoch 0 training" in log.read_text())
        yield process
        process.kill()
        process.communicate()

    def test_sigkill_ends_the_run_under_way_which_goes_on_and_loses_no_other(
        self, in_the_second, words, tmp_path
    ):
        in_the_second.kill()
        in_the_second.wait()
        before = stamps(tmp_path)
        assert len(before) == 1
        comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert [each["status"] for each in comparison["rows"]] == ["finished", "waiting"]
        wait_for(lambda: not runs_in(tmp_path))  # the orphan has ended, and left a checkpoint
        folder = tmp_path / "out" / "SASRec" / "seed-2020"
        assert [*(folder / "checkpoints").glob("*.pt")]
        again = script(*words, cwd=tmp_path)
        try:
            wait_for(lambda: (folder / "run.log").read_text().count("'interactions'") == 2)
            assert len(runs_in(tmp_path)) == 1
            assert stamps(tmp_path) == before
            again.terminate()
            _, error = again.communicate(timeout=300)
            assert again.returncode == 143
            assert "2 runs in" in error and "1 of them finished before" in error
        finally:
            again.kill()
            again.communicate()

    def test_ctrl_c_ends_the_runs(self, in_the_second, tmp_path):
        in_the_second.send_signal(signal.SIGINT)
        _, error = in_the_second.communicate(timeout=300)
        assert in_the_second.returncode == 130
        assert error.splitlines()[-1].startswith("interrupted; the same command goes on")
        assert runs_in(tmp_path) == []
        assert len(stamps(tmp_path)) == 1


class TestAnUnfinishedRun:
    @pytest.fixture
    def cell(self, tmp_path, monkeypatch):
        """One that died after its first checkpoint."""
        given = [f"--{key}={value}" for key, value in {**TINY, "epochs": 3}.items()]
        words = [*BASE[:2], *given, "--model_list=SASRec", "--checkpoint_steps=4"]
        cell = read_request([*words, f"--run_dir={tmp_path}"]).cells[0]

        class Died(BaseException):
            pass

        write = CheckpointFolder.write

        def write_and_die(self, state):
            write(self, state)
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointFolder, "write", write_and_die)
            with pytest.raises(Died):
                run(command_line=cell.words)
        return cell

    def test_goes_on_from_its_checkpoint(self, cell):
        words = cell.words_to_run()
        assert words[-1] == f"--resume={cell.folder}"
        assert run(command_line=words)["starts"] == 2

    def test_begins_anew_where_the_checkpoint_is_damaged(self, cell):
        for file in (cell.folder / "checkpoints").iterdir():
            file.write_bytes(file.read_bytes()[:-1])
        assert cell.words_to_run() == cell.words
        assert not cell.folder.exists()

    @pytest.mark.parametrize("whole", [True, False])
    def test_of_other_settings_is_refused_and_stays(self, cell, whole):
        file = cell.folder / "config.yaml"
        file.write_text(file.read_text().replace("learning_rate:", "learning_rate: 7 #"))
        if not whole:
            shutil.rmtree(cell.folder / "checkpoints")
        before = sorted(cell.folder.rglob("*"))
        with pytest.raises(ValueError, match=r"holds a run with learning_rate 7, not 0\.001; move"):
            cell.words_to_run()
        assert sorted(cell.folder.rglob("*")) == before

    @pytest.mark.parametrize("text", [None, "", "model: mine\n"])
    def test_of_settings_that_cannot_be_told_is_refused_and_stays(self, cell, text):
        file = cell.folder / "config.yaml"
        file.unlink() if text is None else file.write_text(text)
        before = sorted(cell.folder.rglob("*"))
        with pytest.raises(ValueError, match=r"of a run whose settings no config\.yaml tells"):
            cell.words_to_run()
        assert sorted(cell.folder.rglob("*")) == before

    @pytest.mark.parametrize(
        "name", ["thesis.txt", "checkpoints/thesis.txt", "state.pt/thesis.txt", "retriever/a/b"]
    )
    def test_with_files_of_others_is_refused_and_stays(self, cell, name):
        for file in (cell.folder / "checkpoints").iterdir():
            file.write_bytes(b"damaged")
        (cell.folder / "state.pt").unlink(missing_ok=True)
        foreign = cell.folder / name
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("years of work")
        with pytest.raises(ValueError, match=" is not of a run; move it away"):
            cell.words_to_run()
        assert foreign.read_text() == "years of work"

    def test_that_has_a_log_alone_loses_nothing(self, cell):
        for path in [*cell.folder.iterdir()]:
            if path.name != "run.log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert cell.words_to_run() == cell.words
        assert [path.name for path in cell.folder.iterdir()] == ["run.log"]
