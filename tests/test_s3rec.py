"""S3Rec's two stages as one run, and each alone."""

import pytest
import torch

from recbole_jepa4rec.base.checkpoint import load_state, read_weights
from recbole_jepa4rec.runner.quick_start import main, run
from recbole_jepa4rec.training.pretrained_chain import PRETRAINED_NAME, PretrainedChain
from recbole_jepa4rec.training.protocol import ProtocolTrainer
from recbole_jepa4rec.training.state import Session
from tests.conftest import TINY

METRICS = ("valid", "test")


@pytest.fixture
def s3rec(workplace, toy):
    """Runs S3Rec on the toy set in a moment."""
    small = {**toy, **TINY, "pretrain_epochs": 2, "epochs": 2}

    def call(name, **settings):
        return run("S3Rec", config_dict={**small, "run_dir": str(workplace / name), **settings})

    return call


class TestBothStages:
    def test_one_run_pretrains_and_finetunes(self, s3rec, workplace):
        result = s3rec("both")
        assert (result["stage"], result["label"]) == ("both", "S3Rec-CE")
        assert result["pretrain_datasets"] == ["toy"]
        assert min(result["seconds"][stage] for stage in ("pretrain", "finetune")) > 0
        assert result["epochs"] == 4
        points = [(point["stage"], point["epoch"]) for point in result["learning_curve"]]
        assert points == [("finetune", 2), ("finetune", 3)]
        best = max(result["learning_curve"], key=lambda point: point["valid"])
        assert result["best_epoch"] == best["epoch"]
        assert result["valid"]["ndcg@10"] == best["valid"]
        files = {path.name for path in (workplace / "both").iterdir()}
        assert {"pretrained.pt", "model.safetensors", "result.json"} <= files

    def test_finetuning_starts_from_the_weights_that_pretraining_left(self, s3rec, workplace):
        trained, untrained = s3rec("a", epochs=0), s3rec("b", epochs=0, pretrain_epochs=0)
        weights = {}
        for name in "ab":
            left = load_state(workplace / name / "pretrained.pt")["state_dict"]
            weights[name], metadata = read_weights(workplace / name / "model.safetensors")
            assert all(torch.equal(left[key], value) for key, value in weights[name].items())
            assert metadata["pretrain_datasets"] == ('["toy"]' if name == "a" else "[]")
        moved = [key for key, value in weights["a"].items() if not value.equal(weights["b"][key])]
        assert "item_embedding.weight" in moved
        assert (trained["best_epoch"], untrained["best_epoch"]) == (1, None)

    def test_it_equals_a_run_of_each_stage(self, s3rec, workplace):
        both = s3rec("both")
        first = s3rec("first", train_stage="pretrain")
        second = s3rec("second", checkpoint=str(workplace / "first"))
        assert (first["stage"], second["stage"]) == ("pretrain", "finetune")
        assert [second[name] for name in METRICS] == [both[name] for name in METRICS]
        assert first["pretrain_datasets"] == second["pretrain_datasets"] == ["toy"]
        assert second["checkpoint_from"] == str(workplace / "first" / "model.safetensors")
        assert second["seconds"]["pretrain"] == 0

    def test_the_file_that_recbole_s_pretraining_saves_serves(self, s3rec, workplace):
        s3rec("first", train_stage="pretrain", save_step=2)
        file = workplace / "first" / "S3Rec-toy-2.pth"
        by_file = s3rec("by_file", pre_model_path=str(file))
        by_folder = s3rec("by_folder", checkpoint=str(workplace / "first"))
        assert by_file["stage"] == "finetune"
        assert [by_file[name] for name in METRICS] == [by_folder[name] for name in METRICS]


def test_a_file_that_holds_code_is_refused_before_recbole_loads_it(tmp_path):
    """As of a stranger's run folder that somebody resumes."""
    torch.save({"state_dict": print}, tmp_path / PRETRAINED_NAME)
    config = {"train_stage": "both", "checkpoint": None, "pre_model_path": None}
    made = []
    session = Session(resumed={"stage": "finetune"})
    with pytest.raises(ValueError, match="holds more than plain values"):
        PretrainedChain(config, tmp_path, made.append, session).fit(None, None, False)
    assert not made


class TestTime:
    @pytest.fixture
    def epochs(self, monkeypatch):
        """Of every epoch: stage, seconds allowed since the run began to train, rows a step."""
        seen, train = [], ProtocolTrainer._train_epoch

        def record(trainer, loader, *arguments, **options):
            allowed = round(trainer.timer.deadline - trainer.timer.began, 3)
            seen.append((trainer.state.stage, allowed, loader.batch_size, trainer.timer.began))
            return train(trainer, loader, *arguments, **options)

        monkeypatch.setattr(ProtocolTrainer, "_train_epoch", record)
        return seen

    def test_the_limit_covers_both_stages(self, s3rec, epochs, clock):
        s3rec("run", max_train_seconds=1000, pretrain_time_ratio=0.3)
        assert [(stage, allowed) for stage, allowed, *_ in epochs] == [
            ("pretrain", 300),
            ("pretrain", 300),
            ("finetune", 1000),
            ("finetune", 1000),
        ]
        assert {moment for *_, moment in epochs} == {clock.now}

    def test_pretraining_alone_has_it_all(self, s3rec, epochs):
        s3rec("run", max_train_seconds=1000, train_stage="pretrain", pretrain_epochs=1)
        assert [seen[:2] for seen in epochs] == [("pretrain", 1000)]

    def test_weights_are_kept_however_short_the_time(self, s3rec, workplace):
        result = s3rec("run", max_train_seconds=1e-9, save_step=50)
        assert result["epochs"] == 1
        pretrained = load_state(workplace / "run" / "pretrained.pt")["state_dict"]
        weights, _ = read_weights(workplace / "run" / "model.safetensors")
        assert all(torch.equal(pretrained[name], value) for name, value in weights.items())

    @pytest.mark.parametrize(("limits", "rows"), [((32, 1024), 32), ((256, 0.02), 16)])
    def test_a_step_of_pretraining_has_rows_of_its_own(self, s3rec, epochs, limits, rows):
        """0.02 MiB at 52 bytes a position and value, 5 positions, 4 brands and the padding."""
        size, memory = limits
        s3rec("run", pretrain_batch_size=size, pretrain_memory_mib=memory, item_attribute="brand")
        found = {stage: size for stage, _, size, _ in epochs}
        assert found["finetune"] == TINY["train_batch_size"]
        assert found["pretrain"] == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_stage=first"], "train_stage is 'first'; allowed: pretrain, finetune, both"),
        (["--train_stage=finetune"], "train_stage is 'finetune' without weights to start from"),
        (["--pre_model_path=no.pth"], "pre_model_path 'no.pth' is no file"),
        (["--checkpoint=no"], "checkpoint 'no' is neither a file nor holds model.safetensors"),
    ],
)
def test_a_start_that_cannot_be_made_is_refused_before_anything_is_written(
    words, message, workplace, toy, capsys
):
    given = [f"--{key}={value}" for key, value in toy.items()]
    assert main(["--model=S3Rec", *given, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(workplace.iterdir())


def test_weights_for_other_items_are_refused(s3rec, workplace):
    s3rec("first", train_stage="pretrain", pretrain_epochs=0)
    (workplace / "toy2").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{user}\ti{item}\t{item}" for user in range(5) for item in range(user, user + 4)]
    (workplace / "toy2" / "toy2.inter").write_text("\n".join(lines) + "\n")
    items = "".join(f"i{item}\t{'ab'[item % 2]}\n" for item in range(8))
    (workplace / "toy2" / "toy2.item").write_text(f"item_id:token\tkind:token\n{items}")
    other = {"dataset": "toy2", "data_path": str(workplace)}
    with pytest.raises(ValueError, match=r"weights of S3Rec in .* do not fit S3Rec"):
        s3rec("second", checkpoint=str(workplace / "first"), **other)
