"""``run_hyper.py`` without Ray: spaces, refusals, records, report."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.runner.single_run import validate
from recbole_jepa4rec.study.search.driver import _write_identity, main, read_data
from recbole_jepa4rec.study.search.report import html, importances, write_report
from recbole_jepa4rec.study.search.request import read_request
from recbole_jepa4rec.study.search.space import Dimension, grid, random_points, read_space
from recbole_jepa4rec.study.search.trials import (
    FINISHED,
    SCRATCH_MARK,
    STOPPED,
    Record,
    UnderWay,
    best_of,
    clear_unfinished,
    in_one_line,
    read_records,
)
from recbole_jepa4rec.study.study import Board
from tests.conftest import ROOT, TINY

BASE = ["--model=SASRec", "--dataset=toy", f"--data_path={ROOT / 'dataset'}"]
SPACE = "learning_rate: {loguniform: [1e-3, 1e-2]}\nn_layers: {choice: [1, 2]}\n"


@pytest.fixture
def space_file(workplace):
    (workplace / "space.yaml").write_text(SPACE)
    return "--search=space.yaml"


def curve(*scores):
    return [
        {"stage": "train", "epoch": i, "seconds": float(i), "valid": score}
        for i, score in enumerate(scores)
    ]


def keep_identity(request, data, board, identity):
    """Stands for a search that was ended before its first trial."""
    _write_identity(request.folder, identity)


class TestSpace:
    def test_recboles_own_format_means_the_same(self, workplace):
        (workplace / "a.yaml").write_text(
            "learning_rate: {loguniform: [0.0003355, 1.0]}\n"
            "hidden_size: {quniform: [32, 128, 32]}\n"
            "dropout: {uniform: [0.1, 0.5]}\nloss_type: {choice: [CE, BPR]}\n"
        )
        (workplace / "a.test").write_text(
            "# RecBole's loguniform has exponents of e\nlearning_rate loguniform -8, 0\n\n"
            "hidden_size quniform 32,128,32\ndropout uniform 0.1,0.5\n"
            "loss_type choice ['CE', 'BPR']\n"
        )
        assert read_space("a.yaml") == read_space("a.test")

    def test_nothing_in_recboles_format_is_evaluated(self, workplace):
        (workplace / "a.hyper").write_text("n_layers choice [__import__('os').mkdir('made')]\n")
        with pytest.raises(ValueError, match=r"a.hyper, line 1: .* is no list of plain values"):
            read_space("a.hyper")
        assert not (workplace / "made").exists()

    def test_points_lie_in_their_ranges_and_fill_them(self):
        space = [
            Dimension("a", "uniform", (0.5, 2)),
            Dimension("b", "loguniform", (1e-4, 1e-2)),
            Dimension("c", "int", (1, 3)),
            Dimension("d", "quniform", (0.1, 0.3, 0.1)),
            Dimension("e", "choice", (None, [1, 2])),
        ]
        points = random_points(space, 2000, seed=1)
        columns = {each.key: [point[each.key] for point in points] for each in space}
        assert all(0.5 <= x <= 2 for x in columns["a"])
        assert np.mean(columns["a"]) == pytest.approx(1.25, abs=0.05)
        assert all(1e-4 <= x <= 1e-2 for x in columns["b"])
        assert np.mean(np.log10(columns["b"])) == pytest.approx(-3, abs=0.05)
        assert {*columns["c"]} == {1, 2, 3} and {*columns["d"]} == {0.1, 0.2, 0.3}
        assert columns["e"].count(None) == pytest.approx(1000, abs=120)

    def test_a_longer_search_begins_like_a_shorter_one(self):
        space = [Dimension("a", "uniform", (0, 1)), Dimension("b", "choice", (1, 2))]
        assert random_points(space, 9, seed=5)[:4] == random_points(space, 4, seed=5)
        assert random_points(space, 4, seed=5) != random_points(space, 4, seed=6)

    def test_a_finite_space_gives_each_point_once(self):
        space = [Dimension("a", "choice", (1, 2)), Dimension("b", "int", (0, 2))]
        points = random_points(space, 50, seed=0)
        assert sorted(map(repr, points)) == sorted(map(repr, grid(space))) and len(points) == 6

    def test_a_grid_that_nobody_lives_to_see(self):
        space = [Dimension(key, "int", (1, 2000)) for key in "ab"]
        with pytest.raises(ValueError, match="'grid' would try 4000000 points; allowed: 1000000"):
            grid(space)

    @pytest.mark.parametrize("file", sorted((find_properties() / "search").glob("*.yaml")))
    def test_the_spaces_that_ship_fit_their_models(self, workplace, file):
        model, _, variant = file.stem.partition("-")
        words = [f"--model={model}", *BASE[1:], "--num_samples=2"]
        request = read_request([*words, *[f"--search={file}"] * bool(variant)])
        assert len(request.points) == 2
        assert {each.key for each in request.space} == read_yaml(file).keys()


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("n_layres: {choice: [1]}", "unknown key 'n_layres' (did you mean 'n_layers'?) in"),
            ("n_layers: {choice: []}", "n_layers: choice [] is empty"),
            ("n_layers: {int: [3, 1]}", "n_layers: int [3, 1] is empty: low must be below high"),
            ("n_layers: {int: [1, 2.5]}", "must be [low, high] in whole numbers"),
            ("n_layers: {choose: [1]}", "unknown kind 'choose' (did you mean 'choice'?)"),
            ("n_layers: [1, 2]", "n_layers [1, 2] must be one of choice, uniform"),
            ("n_layers: {choice: [1, 1]}", "holds 1 twice"),
            (
                "n_layers: {choice: [1, two]}",
                "n_layers 'two': n_layers 'two' must be a whole number from 1",
            ),
            ("n_layers: {choice: [1, 0]}", "n_layers 0: n_layers 0 must be a whole number from 1"),
            ("learning_rate: {loguniform: [0, 1]}", "must be [low, high] above 0"),
            ("learning_rate: {uniform: [.nan, 1]}", "must be [low, high]"),
            ("learning_rate: {quniform: [0, 1, 0]}", "the step must be above 0"),
            ("n_layers: {int: [2, 2]}", "n_layers: int [2, 2] is empty: low must be below high"),
            ("n_layers: {int: [1, 1" + "0" * 400 + "]}", "] must be [low, high] in whole numbers"),
            ("n_layers: {int: [1, 999999999999]}", "has too many steps; allowed: 1000000"),
            ("learning_rate: {quniform: [0, 1, 1e-300]}", "has too many steps; allowed: 1000000"),
            ("n_layers: {quniform: [1, 2, 5]}", "holds low alone: the step must be at most"),
            ("n_layers:", "n_layers None must be one of choice, uniform"),
            ("n_layers: {choice: 3}", "n_layers: choice 3 must be a list of values"),
            ("nproc: {choice: [1, 2]}", "nproc"),
            ("mapping_weight: {choice: [0.1]}", "'SASRec' does not read 'mapping_weight'"),
            ("seed: {choice: [1, 2]}", "seed cannot be searched: it is no property of a model"),
            ("topk: {choice: [5, 10]}", "topk cannot be searched: it decides how trials compare"),
            ("val_interval: {choice: [5]}", "val_interval 5 must be null or a mapping"),
            ("val_interval.rating: {uniform: [0, 1]}", "val_interval.rating shapes the data: unif"),
            ("[]", "holds no `key: value` lines"),
            ("{}", "holds no setting to search"),
        ],
    )
    def test_a_space_is_refused_in_one_line(self, workplace, text, message, capsys):
        (workplace / "space.yaml").write_text(text)
        assert main([*BASE, "--search=space.yaml"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
        assert [path.name for path in workplace.iterdir()] == ["space.yaml"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("learning_rate", "line 2: expected 'key kind value', found 'learning_rate'"),
            ("n_layers choice", "line 2: expected 'key kind value', found 'n_layers choice'"),
            ("n_layers choice 1 2", "line 2: '1 2' is no list of plain values"),
            ("n_layers choice [1,2]]", "line 2: '[1,2]]' is no list of plain values"),
            ("loss_type choice [CE,BPR]", "line 2: '[CE,BPR]' is no list of plain values"),
            ("hidden_dropout_prob uniform 0,1", "line 2: hidden_dropout_prob stands there twice"),
            ("learning_rate loguniform 0,999", "line 2: loguniform 999 is an exponent of e, and"),
            ("n_layers banana [1,2]", "n_layers: unknown kind 'banana' (allowed: choice, uniform"),
            ("n_layers choice {1:2}", "n_layers {1: 2}"),
            ("n_layers choice (1)", "line 2: '(1)' is no list of plain values"),
        ],
    )
    def test_a_line_in_recboles_format_is_refused_by_number(self, workplace, line, message, capsys):
        (workplace / "space.hyper").write_text(f"hidden_dropout_prob uniform 0.1,0.5\n{line}\n")
        assert main([*BASE, "--search=space.hyper"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: space.hyper") and error.count("\n") == 1
        assert message in error

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--num_samples=0"], "num_samples '0' must be a whole number from 1"),
            (["--cpus_per_trial=0"], "cpus_per_trial '0' must be a whole number from 1"),
            (["--cpus_per_trial=half"], "cpus_per_trial 'half' must be a whole number from 1"),
            (["--gpus_per_trial=1.5"], "gpus_per_trial '1.5' must be a share of one GPU"),
            (["--gpus_per_trial=-1"], "gpus_per_trial '-1' must be"),
            (["--algorithm=tpe"], "algorithm is 'tpe'; allowed: random, grid, optuna, hyperopt"),
            (["--algorithm=grid"], "cannot list learning_rate: loguniform has no steps"),
            (["--scheduler=median"], "scheduler is 'median'; allowed: asha, none"),
            (["--address="], "address '' must be auto or HOST:PORT of a Ray cluster's head"),
            (["--address=somewhere"], "address 'somewhere' must be auto or HOST:PORT"),
            (["--address=ray://head:10001"], "address 'ray://head:10001' must be auto or HOST"),
            (["--address=head:99999"], "address 'head:99999' must be auto or HOST:PORT"),
            (["--nproc=2"], "nproc 2: a trial runs in one process; several trials run at once"),
            (["--valid_metric=auc"], "valid_metric 'auc' is not measured"),
            (["--num_sampels=3"], "unknown key 'num_sampels' (did you mean 'num_samples'?)"),
            (["--n_layers=2"], "n_layers is given on the command line and searched in space.yaml"),
            (["--resume"], "nothing to resume in runs/toy/SASRec/search-"),
            (["--resume=maybe"], "resume 'maybe' must be True or False"),
            (["--run_dir=space.yaml"], "run_dir 'space.yaml' is not a folder"),
            (["--search=no.yaml"], "cannot read config file no.yaml"),
            (["--search=no.test"], "cannot read search space no.test"),
            (
                ["--model=FDSA", "--search="],
                "no search space for model 'FDSA' (there are: BERT4Rec, JEPA4Rec, LLMJEPA, ",
            ),
        ],
    )
    def test_a_command_line_is_refused_in_one_line(self, space_file, words, message, capsys):
        keys = {word.partition("=")[0] for word in words}
        line = [word for word in [*BASE, space_file] if word.partition("=")[0] not in keys]
        assert main([*line, *(word for word in words if word != "--search=")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error

    def test_an_absent_package_is_named(self, space_file, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "optuna", None)
        assert main([*BASE, space_file, "--algorithm=optuna"]) == 2
        error = capsys.readouterr().err
        assert "algorithm 'optuna' needs a package" in error and "pip install optuna" in error

    def test_without_ray_one_line_says_what_to_install(self, space_file, monkeypatch, capsys):
        monkeypatch.setattr("recbole_jepa4rec.study.search.driver.find_spec", lambda name: None)
        assert main([*BASE, space_file]) == 2
        assert capsys.readouterr().err == "error: the search needs Ray: pip install '.[tune]'\n"

    def test_data_settings_may_not_change_what_is_measured(self, workplace):
        (workplace / "space.yaml").write_text(
            "user_inter_num_interval: {choice: ['[0,inf)', '[12,inf)']}\n"
        )
        request = read_request([*BASE, "--search=space.yaml"])
        with pytest.raises(ValueError, match="measured on different interactions"):
            read_data(request)


class TestATrial:
    def test_the_test_split_is_never_ranked_and_each_validation_told(self, workplace, toy):
        config = Config("SASRec", config_dict={**toy, **TINY, "epochs": 2, "run_dir": "trial"})
        data, told = find_dataset(config.model_class)(config), []
        result = validate(config, data, told.append)
        assert [point["epoch"] for point in told] == [0, 1]
        assert max(point["valid"] for point in told) == result["valid"]["ndcg@10"]
        assert result["learning_curve"] == told
        names = {path.name for path in (workplace / "trial").iterdir()}
        assert not names & {"result.json", "per_user.parquet"}
        assert "test" not in (workplace / "trial" / "run.log").read_text()

    def test_pretraining_is_not_told_where_finetuning_follows(self, workplace, toy):
        small = {"hidden_size": 8, "intermediate_size": 16, "num_heads": 1, "vocab_size": 50}
        settings = {**toy, **small, "epochs": 1, "frozen_items_epochs": 0, "run_dir": "trial"}
        config = Config("JEPA4Rec", config_dict={**settings, "show_progress": False})
        config["cache_dir"] = "cache"
        told = []
        result = validate(config, find_dataset(config.model_class)(config), told.append)
        assert [point["stage"] for point in told] == ["finetune"]
        assert [point["stage"] for point in result["learning_curve"]] == ["pretrain", "finetune"]

    def test_data_are_read_once_for_each_setting_that_shapes_them(self, workplace):
        (workplace / "space.yaml").write_text(
            "MAX_ITEM_LIST_LENGTH: {choice: [3, 5]}\nn_layers: {choice: [1, 2]}\n"
        )
        request = read_request([*BASE, "--search=space.yaml"])
        data, _ = read_data(request)
        assert sorted(each.max_item_list_len for each in data.values()) == [3, 5]
        assert all(each.config is None for each in data.values())


class TestTrials:
    @pytest.fixture
    def request_(self, space_file):
        return read_request([*BASE, space_file, "--num_samples=4", "--run_dir=search"])

    @pytest.fixture
    def board(self, request_, workplace):
        (workplace / "search").mkdir()
        return Board({}, 4, lambda ended: write_report(request_, ended))

    @pytest.fixture
    def under_way(self, board, workplace):
        return UnderWay(board, workplace / "search" / "trials", "ndcg@10")

    def play(self, under_way, name, scores, status=FINISHED, error=None):
        under_way.begin(name, {"learning_rate": 0.001, "n_layers": 1}, None)
        for point in curve(*scores):
            under_way.measure(name, {**point, "node": "n", "pid": 1})
        under_way.end(name, status, error)

    def test_outputs_after_each_trial(self, under_way, board, workplace, capsys):
        self.play(under_way, "0000", [0.1, 0.3, 0.2])
        self.play(under_way, "0001", [0.2], STOPPED)
        self.play(under_way, "0002", [0.9], "failed", "ValueError: no")
        folder = workplace / "search"
        rows = (folder / "trials.csv").read_text().splitlines()
        assert [row.split(",")[:3] for row in rows[1:]] == [
            ["0002", "failed", "0.9"],
            ["0000", "finished", "0.3"],
            ["0001", "stopped early", "0.2"],
        ]
        best = yaml.safe_load((folder / "best.yaml").read_text())
        assert best_of(board.ended).name == "0000" and best["learning_rate"] == 0.001
        Config(config_file_list=[folder / "best.yaml"])
        assert {each.name: each for each in read_records(folder / "trials")} == board.ended
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith(
            "trial 0000 finished: ndcg@10 0.3000 (learning_rate 0.001, n_layers 1); 3 left, about"
        )

    def test_a_second_attempt_forgets_the_first_but_is_counted(self, under_way, board, capsys):
        under_way.begin("0000", {"n_layers": 1}, None)
        under_way.measure("0000", curve(0.5)[0])
        under_way.begin("0000", {"n_layers": 1}, "OSError: gone")
        assert "0000 failed and is tried again: OSError: gone" in capsys.readouterr().err
        under_way.measure("0000", curve(0.1)[0])
        board.outputs = lambda ended: None
        under_way.end("0000", FINISHED)
        record = board.ended["0000"]
        assert (record.attempts, record.score) == (2, 0.1)

    def test_a_trial_may_fail_before_it_begins(self, request_, under_way, board, tmp_path):
        pytest.importorskip("ray")
        from recbole_jepa4rec.study.search.trial import NAME_KEY
        from recbole_jepa4rec.study.search.tuning import _Ear

        class Trial:  # of Ray's
            trial_id, config, error_file = "x", {NAME_KEY: "0000"}, str(tmp_path / "error.txt")

        (tmp_path / "error.txt").write_text("The actor is dead because its node has died.\n")
        _Ear(request_, under_way, set()).on_trial_error(1, [], Trial())
        record = board.ended["0000"]
        assert (record.status, record.point) == ("failed", request_.points["0000"])
        assert record.error == "The actor is dead because its node has died."

    def test_the_page_shows_every_trial_and_needs_no_network(self, request_):
        point = {"learning_rate": 0.001, "n_layers": 1}
        found = {
            f"000{i}": Record(f"000{i}", point, FINISHED, curve(0.1 * i, 0.2)) for i in range(4)
        }
        bad = {"learning_rate": 0.002, "n_layers": 2}
        found["bad"] = Record("bad", bad, "failed", error="ValueError: <script>")
        page = html(request_, found)
        assert all(name in page for name in ("0000", "0003", "bad"))
        assert "ValueError: &lt;script&gt;" in page
        assert "http" not in page[: page.index("<script>")]
        start = page.index('id="figures">') + len('id="figures">')
        plots = json.loads(page[start : page.index("</script>", start)])
        assert [plot["title"] for plot in plots] == [
            "Settings and score",
            "What mattered",
            "Learning curves",
        ]

    def test_unfinished_trials_are_cleared_and_strangers_kept(self, workplace):
        trials = workplace / "search" / "trials"
        for name in ("0000", "0001"):
            Record(name, {}, FINISHED).write(trials / name)
        clear_unfinished(trials.parent, {"0000"})
        assert [path.name for path in trials.iterdir()] == ["0000"]
        (trials / "0000" / "mine.txt").write_text("")
        with pytest.raises(ValueError, match=r"0000/mine.txt is not of a trial; move it away"):
            clear_unfinished(trials.parent, {})
        assert {path.name for path in (trials / "0000").iterdir()} == {"mine.txt", "trial.json"}

    def test_ray_s_notes_are_cleared_and_a_folder_called_like_them_is_not(self, workplace):
        notes = workplace / "search" / "ray"
        (notes / "trials").mkdir(parents=True)
        (notes / "trials" / "tuner.pkl").write_text("")
        with pytest.raises(ValueError, match="search/ray holds more than notes of Ray's; move it"):
            clear_unfinished(workplace / "search", {})
        assert (notes / "trials" / "tuner.pkl").exists()
        (notes / SCRATCH_MARK).touch()
        clear_unfinished(workplace / "search", {})
        assert not notes.exists()

    @pytest.mark.parametrize("name", ["ray/a", "best/a", "best.yaml", "trials.csv", "search.html"])
    def test_what_stands_where_a_search_would_write_is_refused(
        self, name, space_file, workplace, capsys
    ):
        file = workplace / "search" / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        assert main([*BASE, space_file, "--run_dir=search"]) == 2
        assert capsys.readouterr().err == (
            f"error: run_dir 'search' holds {name.removesuffix('/a')}, which this command has not "
            "written there; allowed: a new or empty folder\n"
        )
        assert [path for path in workplace.rglob("search/**/*") if path.is_file()] == [file]

    def test_the_best_run_takes_the_place_of_one_that_was_best_before_and_of_no_other(
        self, request_
    ):
        points = [{"learning_rate": rate, "n_layers": 1} for rate in (0.001, 0.002)]
        cell, before = map(request_.winner, points)
        before.folder.mkdir(parents=True)
        before.config.save(before.folder / "config.yaml")
        RunFolder(before.folder).weights_file.touch()
        with pytest.raises(ValueError, match=r"holds a run with learning_rate 0\.002, not 0\.001"):
            cell.words_to_run()
        assert RunFolder(before.folder).weights_file.exists()
        replace(cell, before=(before.settings,)).words_to_run()
        assert not before.folder.exists()

    @pytest.mark.parametrize("text", ["{", "[]", '{"name": 1, "point": {}}', '{"evil": 1}'])
    def test_a_damaged_record_is_named(self, workplace, text):
        (workplace / "0000").mkdir()
        (workplace / "0000" / "trial.json").write_text(text)
        with pytest.raises(ValueError, match=r"trial.json is not the record of a trial"):
            read_records(workplace)


class TestResume:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--resume", "--epochs=7"], "settings.epochs is 300 there and 7 here"),
            (
                ["--resume", "--search=other.yaml"],
                "space.n_layers.choice is [1, 2] there and [1, 3] here",
            ),
            (["--resume", "--algorithm=hyperopt"], "'hyperopt' cannot go on with --resume"),
            ([], "search holds a search (write --resume, or another --run_dir)"),
        ],
    )
    def test_only_the_same_search_goes_on(
        self, space_file, words, message, workplace, monkeypatch, capsys
    ):
        (workplace / "other.yaml").write_text(SPACE.replace("[1, 2]", "[1, 3]"))
        monkeypatch.setattr(
            "recbole_jepa4rec.study.search.request.import_module", lambda name: None
        )
        line = [*BASE, space_file, "--run_dir=search"]
        monkeypatch.setattr("recbole_jepa4rec.study.search.driver._run_missing", keep_identity)
        assert main(line) == 1  # no trial ran
        before = (workplace / "search" / "search.json").read_text()
        capsys.readouterr()
        keys = {word.partition("=")[0] for word in words}
        line = [word for word in line if word.partition("=")[0] not in keys]
        assert main([*line, *words]) == 2
        assert (workplace / "search" / "search.json").read_text() == before
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error

    def test_a_search_does_not_go_on_with_other_data(
        self, space_file, workplace, monkeypatch, capsys
    ):
        shutil.copytree(ROOT / "dataset" / "toy", workplace / "data" / "toy")
        line = ["--model=SASRec", "--dataset=toy", "--data_path=data", space_file]
        monkeypatch.setattr("recbole_jepa4rec.study.search.driver._run_missing", keep_identity)
        assert main([*line, "--run_dir=search"]) == 1
        capsys.readouterr()
        rows = (workplace / "data" / "toy" / "toy.inter").read_text().splitlines()
        (workplace / "data" / "toy" / "toy.inter").write_text("\n".join(rows[:-1]) + "\n")
        assert main([*line, "--run_dir=search", "--resume"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "search.json is of another search: data_fing" in error


def test_importance_finds_the_setting_that_matters():
    space = [Dimension("a", "loguniform", (1e-4, 1)), Dimension("b", "choice", ("x", "y"))]
    records = [
        Record(str(i), point, FINISHED, curve(math.log(point["a"])))
        for i, point in enumerate(random_points(space, 40, seed=0))
    ]
    found = importances(space, records)
    assert found["a"] > 0.9 and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Failure # 1\nTraceback:\n  File x\nValueError: loss is\n", "ValueError: loss is"),
        (
            "ray.exceptions.RayActorError: The actor died\n\tclass_name: X\n"
            "The actor is dead because its node has died.",
            "The actor is dead because its node has died.",
        ),
        ("", "no reason is known"),
    ],
)
def test_errors_are_told_in_one_line(text, line):
    assert in_one_line(text) == line
