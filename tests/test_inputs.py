"""Files that settings name: under the same name other bytes make another run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.runner.inputs import input_digests
from recbole_jepa4rec.runner.quick_start import main, run
from recbole_jepa4rec.runner.recommender import load
from recbole_jepa4rec.study import group
from recbole_jepa4rec.study.comparison import Row, compare
from recbole_jepa4rec.study.search import driver
from recbole_jepa4rec.training.checkpoints import CheckpointFolder
from tests.conftest import TINY
from tests.handmade_runs import row, write_run
from tests.tiny_encoder import tiny_bert  # noqa: F401

SMALL = {
    **{"hidden_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 8, "show_progress": False},
    **{"epochs": 1, "pretrain_epochs": 0, "text_encoder": "own.npy", "state": "warning"},
}


class Killed(BaseException):
    """Ends a run; no code catches it."""


def write_vectors(path, seed):
    vectors = np.random.default_rng(seed).normal(size=(30, 4)).astype(np.float32)
    np.save(path, vectors)


@pytest.fixture
def given(workplace, toy):
    """Settings of UniSRec on vectors of its own."""
    write_vectors("own.npy", 1)
    return {**toy, **SMALL}


@pytest.fixture
def words(given):
    return [f"--{key}={value}" for key, value in given.items()]


def contents():
    files = [path for path in Path("run").rglob("*") if path.is_file() and path.name != "run.log"]
    return {path: path.read_bytes() for path in files}


REFUSAL = "is of a run for which text_encoder 'own.npy' held other bytes (digest "


def test_an_unfinished_run_does_not_go_on_with_other_vectors(given, monkeypatch, capsys):
    write = CheckpointFolder.write
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", lambda *of: write(*of) and raise_killed())
        with pytest.raises(Killed):
            run("UniSRec", config_dict={**given, "run_dir": "run"})
    write_vectors("own.npy", 2)
    before = contents()
    assert main(["--resume=run"]) == 2
    (error,) = capsys.readouterr().err.splitlines()[-1:]
    assert error.startswith(f"error: run/checkpoints {REFUSAL}")
    assert contents() == before
    write_vectors("own.npy", 1)
    assert run(config_dict={"resume": "run"})["starts"] == 2


def raise_killed():
    raise Killed


def test_a_trained_model_is_not_loaded_with_other_vectors(given):
    done = run("UniSRec", config_dict={**given, "run_dir": "run"})
    assert list(done["inputs"]) == ["text_encoder"]
    shutil.copy("own.npy", "elsewhere.npy")
    write_vectors("own.npy", 2)
    with pytest.raises(ValueError, match=r"^run is of a run for which text_encoder 'own\.npy' "):
        load("run")
    load("run", text_encoder="elsewhere.npy")


def test_a_comparison_takes_no_run_on_other_vectors_for_its_own(given, words, capsys):
    place = "out/UniSRec/seed-2020"
    run("UniSRec", config_dict={**given, "run_dir": place})
    asked = [*words, "--model_list=UniSRec", "--run_dir=out"]
    assert group.main(asked) == 0
    write_vectors("own.npy", 2)
    capsys.readouterr()
    assert group.main(asked) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {place} {REFUSAL}") and error.count("\n") == 1
    Path("own.npy").unlink()  # of which nothing is known then; the ranks stand as they are
    assert group.main(asked) == 0


def test_a_search_does_not_go_on_with_other_vectors(words, monkeypatch, capsys):
    Path("space.yaml").write_text("text_encoder: {choice: [own.npy, second.npy]}\n")
    write_vectors("second.npy", 3)
    words = [word for word in words if not word.startswith("--text_encoder")]
    words += ["--model=UniSRec", "--search=space.yaml", "--run_dir=search"]

    def end_before_the_first_trial(request, data, board, identity):
        driver._write_identity(request.folder, identity)

    monkeypatch.setattr(driver, "_run_missing", end_before_the_first_trial)
    assert driver.main(words) == 1
    assert driver.main([*words, "--resume"]) == 1
    write_vectors("second.npy", 4)
    capsys.readouterr()
    assert driver.main([*words, "--resume"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "search.json is of another search: inputs.text_encoder=second.npy is " in error


def test_runs_on_other_bytes_of_one_name_are_not_compared(tmp_path):
    of_own = {"settings": {"text_encoder": "own.npy"}, "inputs": {"text_encoder": "a" * 16}}
    of_other = {"settings": {"text_encoder": "other.npy"}, "inputs": {"text_encoder": "b" * 16}}
    rows = [
        row(tmp_path, "A", [1, 2], inputs={}),
        row(tmp_path, "B", [1, 2], **of_own),
        row(tmp_path, "C", [1, 2], **of_other),
    ]
    compare(rows, "A", "toy", {}, "command")
    changed = {**of_own, "inputs": {"text_encoder": "c" * 16}}
    second = write_run(tmp_path / "B" / "seed-2", [1, 2], label="B", seed=2, **changed)
    rows[1] = Row("B", [1, 2], {**rows[1].runs, 2: second}, {})
    message = f"{tmp_path}/B/seed-1 and {tmp_path}/B/seed-2 cannot be compared: text_encoder"
    with pytest.raises(ValueError, match=f"{message} 'own.npy' held other bytes"):
        compare(rows, "A", "toy", {}, "command")


class TestDigests:
    def of(self, model, toy, **settings):
        return input_digests(Config(model, config_dict={**toy, **settings}))

    def test_of_a_folder_follow_its_names_and_contents(self, workplace, toy, tiny_bert):  # noqa: F811
        shutil.copytree(tiny_bert, "bert")
        first = self.of("JEPA4Rec", toy, encoder_checkpoint="bert")
        assert list(first) == ["encoder_checkpoint"]
        Path("bert/README.md").write_text("not read")
        shutil.copytree("bert", "moved")
        assert self.of("JEPA4Rec", toy, encoder_checkpoint="moved") == first
        (Path("bert") / "1_Pooling").mkdir()
        Path("bert/1_Pooling/config.json").write_text("{}")
        second = self.of("JEPA4Rec", toy, encoder_checkpoint="bert")
        Path("bert/1_Pooling").rename("bert/2_Pooling")
        third = self.of("JEPA4Rec", toy, encoder_checkpoint="bert")
        assert len({json.dumps(each) for each in (first, second, third)}) == 3

    def test_of_a_run_are_those_of_what_is_read(self, workplace, toy):
        for name in ("start", "other"):
            run("SASRec", config_dict={**toy, **TINY, "epochs": 0, "run_dir": name})
        first = self.of("SASRec", toy, checkpoint="start")
        assert list(first) == ["checkpoint"]
        Path("start/state.pt").unlink(missing_ok=True)
        Path("start/notes.txt").write_text("mine")
        assert self.of("SASRec", toy, checkpoint="start") == first
        assert self.of("SASRec", toy, checkpoint="start/model.safetensors") == first
        with open("start/model.safetensors", "ab") as file:
            file.write(b" ")
        assert self.of("SASRec", toy, checkpoint="start") != first
        asked = {"retriever": "start", "language_model": "start"}
        assert set(self.of("LlamaRec", toy, **asked)) == {"retriever", "language_model"}

    def test_of_one_file_do_not_follow_its_name(self, workplace, toy):
        for name, seed in (("a.npy", 1), ("b.npy", 1), ("c.npy", 2)):
            write_vectors(name, seed)
        a, b, c = (self.of("VQRec", toy, text_encoder=f"{name}.npy") for name in "abc")
        assert a == b != c

    @pytest.mark.parametrize(
        ("model", "settings"),
        [
            ("SASRec", {"text_encoder": "own.npy"}),  # which it does not read
            ("STAR", {"text_encoder": "own.npy", "text_weight": 0}),
            ("STAR", {}),
            ("UniSRec", {"text_encoder": "gone.npy"}),
            ("LlamaRec", {"language_model": "nowhere/at-all"}),
            ("JEPA4Rec", {"checkpoint": "gone"}),
        ],
    )
    def test_what_is_not_read_or_not_there_has_none(self, workplace, toy, model, settings):
        write_vectors("own.npy", 1)
        assert self.of(model, toy, **settings) == {}
