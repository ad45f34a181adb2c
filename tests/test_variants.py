"""Rows of a comparison that are one model with several presets."""

import json
import shutil
from pathlib import Path

import pytest

from recbole_jepa4rec.base.yaml_files import find_properties
from recbole_jepa4rec.runner.quick_start import main as run_main
from recbole_jepa4rec.study import grid
from recbole_jepa4rec.study.comparison import compare
from recbole_jepa4rec.study.group import main, read_request
from recbole_jepa4rec.study.search.driver import main as search_main
from recbole_jepa4rec.study.variants import OF_ALL_ROWS
from tests import test_registry
from tests.conftest import ROOT
from tests.handmade_runs import row

BASE = ["--dataset=toy", f"--data_path={ROOT / 'dataset'}", "--show_progress=False"]
TEXT = "weights: given\ntext_weight: 1\ncooccurrence_weight: 0\ntransition_weight: 0\n"
"""STAR by item text alone, so that nothing is left to validation."""


def cells_of(entries, *words):
    asked = [*BASE, f"--model_list={entries}", "--run_dir=out"]
    return {cell.entry: cell for cell in read_request([*asked, *words]).cells}


class TestEntries:
    def test_presets_lie_over_files_and_under_the_command_line(self, workplace):
        Path("shared.yaml").write_text("epochs: 1\nstopping_step: 1\neval_step: 1\n")
        Path("mine.yaml").write_text("eval_step: 3\nstopping_step: 3\nepochs: 3\n")
        cells = cells_of(
            "JEPA4Rec,JEPA4Rec:jepa4rec-strong:mine.yaml",
            "--config_files=shared.yaml",
            "--epochs=4",
        )
        keys = ("epochs", "stopping_step", "eval_step", "neighbour_prior")
        found = {entry: [cell.settings[key] for key in keys] for entry, cell in cells.items()}
        assert found["JEPA4Rec"] == [4, 1, 1, False]
        assert found["JEPA4Rec:jepa4rec-strong:mine"] == [4, 3, 3, True]

    def test_each_has_a_folder_without_a_colon(self, workplace):
        (workplace / "my folder").mkdir()
        Path("my folder", "odd name.yml").write_text("eval_step: 3\n")
        cell = cells_of("STAR:my folder/odd name.yml:smoke")["STAR:odd name:smoke"]
        assert cell.folder.as_posix() == "out/STAR+odd name+smoke/seed-2020"
        assert "--model=STAR" in cell.words and cell.settings["eval_step"] == 1  # smoke's

    def test_a_loss_and_a_preset(self):
        settings = cells_of("SASRec-BPR:smoke")["SASRec-BPR:smoke"].settings
        assert (settings["loss_type"], settings["epochs"]) == ("BPR", 8)

    def test_the_reference_is_spelled_alike(self, workplace):
        Path("mine.yaml").write_text("eval_step: 3\n")
        words = [*BASE, "--model_list=STAR,STAR:mine.yaml,JEPA4Rec:smoke,JEPA4Rec"]
        assert read_request(words).reference == "JEPA4Rec:smoke"
        assert read_request([*words, "--reference=STAR:mine.yaml"]).reference == "STAR:mine"

    def test_a_preset_is_no_part_of_what_only_other_rows_are_given(self):
        cells = cells_of("SASRec,RecFormer:no-ranking-head,RecFormer:ranking-head")
        heads = [cell.settings.get("history_bias") for cell in cells.values()]
        assert heads == [None, False, True]

    def test_a_key_goes_to_the_models_that_read_it(self):
        cells = cells_of("SASRec,RecFormer,Markov", "--history_bias=True", "--n_layers=1")
        found = [[c.settings.get(k) for k in ("history_bias", "n_layers")] for c in cells.values()]
        assert found == [[None, 1], [True, None], [None, None]]
        assert not any("history_bias" in word for word in cells["SASRec"].words)


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["STAR:"], "model_list 'STAR:' holds an empty name"),
            ([":smoke"], "model_list ':smoke' holds an empty name"),
            (["STAR::smoke"], "model_list 'STAR::smoke' holds an empty name"),
            (["STAR:smoke:smoke"], "model_list 'STAR:smoke:smoke' names preset 'smoke' twice"),
            (["STAR:a.yaml:./a.yaml"], "'STAR:a.yaml:./a.yaml' names preset 'a.yaml' twice"),
            (["STAR:smoke,STAR:smoke"], "names 'STAR:smoke' twice"),
            (["JEPA4Rec:smok"], "unknown preset 'smok' (did you mean 'smoke'?) (allowed: jepa4rec"),
            (["STAR:no.yaml"], "cannot read config file no.yaml: No such file"),
            (["STRA:smoke"], "unknown model 'STRA' (did you mean 'STAR'?)"),
            (["STAR:odd.yaml"], "unknown key 'epoch' (did you mean 'epochs'?) in odd.yaml"),
            (["STAR:bad.yaml"], "epochs -1 must be a whole number from 0"),
            (["STAR:a.yaml,STAR:b/a.yaml"], "of which both rows would be 'STAR:a'; give one file"),
            (["STAR:a.yaml,STAR"], "model_list names 'STAR:a' and 'STAR', which are the same"),
            (
                ["UniSRec:jepa4rec-strong"],
                "jepa4rec-strong.yaml has no effect: UniSRec does not read it",
            ),
            (
                ["STAR:topk.yaml"],
                "key 'topk' in topk.yaml is of all rows; allowed in a preset: settings of the mod",
            ),
            (
                ["STAR:a.yaml", "--reference=STAR"],
                "reference 'STAR' is not in model_list (allowed: STAR:a)",
            ),
            (
                ["SASRec,Markov", "--history_bias=True"],
                "history_bias True has no effect: SASRec does not read it",
            ),
        ],
    )
    def test_one_line_and_nothing_runs(self, workplace, words, message, capsys):
        files = {"a": "eval_step: 1", "odd": "epoch: 1", "bad": "epochs: -1", "topk": "topk: [5]"}
        for name, text in files.items():
            Path(f"{name}.yaml").write_text(text)
        Path("b").mkdir()
        Path("b/a.yaml").write_text("eval_step: 3")
        assert main([*BASE, f"--model_list={words[0]}", *words[1:], "--run_dir=out"]) == 2
        out, error = capsys.readouterr()
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error and out == ""
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ("JEPA4Rec:smok", "unknown preset 'smok' (did you mean 'smoke'?)"),
            ("SASRec:ranking-head", f"key 'history_bias' in {find_properties()}/preset/ranking-h"),
        ],
    )
    def test_before_anything_heavy_is_imported(self, entry, message):
        words = [f"--model_list={entry}", "--dataset=ml-100k"]
        refused = test_registry.test_words_are_refused_before_anything_heavy_is_imported
        refused(test_registry.GROUP, words, message)

    def test_every_file_of_ours_holds_settings_of_a_row(self):
        for file in find_properties().glob("preset/*.yaml"):
            keys = {line.partition(":")[0] for line in file.read_text().splitlines()}
            assert not keys & OF_ALL_ROWS, file

    @pytest.mark.parametrize(
        ("command", "named"), [(run_main, "model"), (search_main, "model"), (main, "model_list")]
    )
    @pytest.mark.parametrize("key", ["history_bias", "num_layers"])
    def test_what_no_model_reads_is_refused(self, workplace, command, named, key, capsys):
        assert command([*BASE, f"--{named}=SASRec", f"--{key}=1"]) == 2
        error = capsys.readouterr().err
        assert error == f"error: {key} 1 has no effect: SASRec does not read it\n"
        assert not [*workplace.iterdir()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two variants of STAR, whose labels are alike, and Popularity."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.yaml").write_text(TEXT)
        Path("newest.yaml").write_text("recency_decay: 0.1\n")
        assert main([*BASE, f"--model_list={ENTRIES}", "--run_dir=out", REFERENCE]) == 0
    return folder


ENTRIES = "STAR:text.yaml,STAR:text.yaml:newest.yaml,Popularity"
NAMES = ["STAR:text", "STAR:text:newest", "Popularity"]
REFERENCE = "--reference=STAR:text.yaml:newest.yaml"


class TestAComparison:
    @pytest.fixture(autouse=True)
    def words(self, finished, tmp_path, monkeypatch):
        """In a copy of the finished one."""
        shutil.copytree(finished, tmp_path / "copy")
        monkeypatch.chdir(tmp_path / "copy")
        return [*BASE, f"--model_list={ENTRIES}", "--run_dir=out", REFERENCE]

    def test_tells_the_rows_apart(self):
        told = json.loads(Path("out/comparison.json").read_text())
        assert [each["entry"] for each in told["rows"]] == NAMES
        labels = [each["label"] for each in told["rows"]]
        assert labels == ["STAR (tfidf 1) [text]", "STAR (tfidf 1) [text:newest]", "Popularity"]
        assert told["reference"] == "STAR:text:newest"
        assert {test["baseline"] for test in told["tests"]} == {"STAR:text", "Popularity"}
        differing = told["conditions"]["differing"]["recency_decay"]
        assert differing == {"STAR:text": None, "STAR:text:newest": 0.1}
        first, second = (each["test"]["mrr"]["mean"] for each in told["rows"][:2])
        assert first != second
        for kind in ("md", "tex", "html"):
            text = Path(f"out/comparison.{kind}").read_text().replace("\\", "")
            assert "STAR (tfidf 1) [text:newest]" in text

    def test_skips_what_is_finished_and_refuses_other_contents(self, words, capsys):
        assert main(words) == 0
        assert "3 of them finished before" in capsys.readouterr().err
        Path("newest.yaml").write_text("# another comment\nrecency_decay: 0.1")
        assert main(words) == 0
        capsys.readouterr()
        Path("newest.yaml").write_text("recency_decay: 0.2")
        assert main(words) == 2
        expected = "error: out/STAR+text+newest/seed-2020 holds a run with recency_decay 0.1, not"
        error = capsys.readouterr().err
        assert error.startswith(expected) and error.count("\n") == 1

    def test_a_row_that_ran_with_a_changed_file_has_failed(self, words):
        Path("newest.yaml").write_text("recency_decay: 0.2")
        cell = read_request(words).cells[1]  # of a comparison that began with other contents
        expected = f"{cell.folder} holds a run with recency_decay 0.1, not 0.2; move it away"
        assert grid._outcome(cell, 0, 1.0).error.startswith(expected)


def test_labels_that_differ_stay_as_they_are(tmp_path):
    rows = [
        row(tmp_path, "A:x", [1, 2], label="A (new)"),
        row(tmp_path, "A", [1, 3], label="A"),
        row(tmp_path, "A:y", [2, 3], label="A"),
        row(tmp_path, "A:z", errors=["out of memory"]),
    ]
    told = compare(rows, "A", "toy", {}, "command")
    assert [each["label"] for each in told["rows"]] == ["A (new)", "A", "A [y]", "A:z"]
