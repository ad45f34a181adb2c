"""Exact ranks, the time limit and checkpoints, whatever the model."""

import math

import pytest
import torch
from recbole.data.utils import create_samplers, get_dataloader
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import S3RecTrainer, Trainer
from recbole.utils import InputType, init_seed

from recbole_jepa4rec.base.checkpoint import item_ids_digest, load_state, read_weights
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.model.base import RecBoleModel
from recbole_jepa4rec.training import protocol
from recbole_jepa4rec.training.protocol import ProtocolTrainer
from recbole_jepa4rec.training.recbole_loop import with_protocol
from tests.conftest import TINY


class Fixed(SequentialRecommender):
    """Scores by one learnable number for each item, and what a step does to it."""

    input_type = InputType.POINTWISE
    after_step = staticmethod(lambda: None)
    loss_factor = 1.0

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.score = torch.nn.Parameter(torch.zeros(dataset.item_num))
        self.steps = 0

    def calculate_loss(self, interaction):
        self.steps += 1
        self.after_step()
        target = interaction[self.ITEM_ID]
        return (
            torch.nn.functional.cross_entropy(self.score.expand(len(target), -1), target)
            * self.loss_factor
        )

    def full_sort_predict(self, interaction):
        return self.score.detach().expand(len(interaction), -1).clone()


@pytest.fixture
def prepare(workplace, toy):
    """A trainer of ``Fixed`` and its loaders, on the toy set."""

    def prepare(trainer_class=Trainer, model_class=Fixed, **settings):
        settings = {"train_batch_size": 16, "train_neg_sample_args": None, **toy, **settings}
        config = Config(model_class, config_dict={"run_dir": str(workplace / "run"), **settings})
        (workplace / "run").mkdir(exist_ok=True)
        if config["run_dir"]:
            config["checkpoint_dir"] = config["run_dir"]
        dataset = SequentialTextDataset(config)
        parts = dataset.build()
        samplers = create_samplers(config, dataset, parts)
        loaders = [
            get_dataloader(config, phase)(config, part, sampler, shuffle=phase == "train")
            for phase, part, sampler in zip(
                ("train", "valid", "test"), parts, samplers, strict=True
            )
        ]
        init_seed(3, True)
        return with_protocol(trainer_class)(config, model_class(config, parts[0])), loaders

    return prepare


def slow_ranks(scores, rows, filter_history):
    """Rank of each row's target, by counting one item at a time."""
    histories = rows.histories
    for position in rows.target.tolist():
        user = int(histories.users[position])
        seen = set(histories.items[histories.offsets[user] : position].tolist())
        target = int(histories.items[position])
        rank = 1.0
        for item in range(1, len(scores)):
            if item != target and not (filter_history and item in seen):
                rank += (scores[item] > scores[target]) + (scores[item] == scores[target]) / 2
        yield float(rank)


class TestEvaluation:
    def test_a_constant_model_never_beats_chance(self, prepare):
        trainer, (_, _, test) = prepare()
        ranks = trainer.rank(test).ranks
        assert ranks.dtype == torch.float64
        assert set(ranks.tolist()) == {test._dataset.item_num / 2}
        result = trainer.evaluate(test, load_best_model=False)
        assert result["recall@10"] == 0
        assert result["mrr"] == pytest.approx(2 / test._dataset.item_num)

    @pytest.mark.parametrize("filter_history", [False, True])
    def test_ranks_equal_a_slow_count(self, prepare, filter_history):
        trainer, (_, valid, test) = prepare(filter_history=filter_history, eval_batch_size=7)
        scores = torch.randint(0, 9, trainer.model.score.shape).float()  # ties included
        trainer.model.score.data = scores
        for loader in (valid, test):
            rows = loader._dataset.inter_feat
            expected = list(slow_ranks(scores.tolist(), rows, filter_history))
            assert trainer.rank(loader).ranks.tolist() == expected

    def test_the_size_of_a_batch_changes_nothing(self, prepare):
        results = []
        for size in (1, 5, 4096):
            trainer, (_, _, test) = prepare(eval_batch_size=size, filter_history=True)
            trainer.model.score.data = torch.arange(len(trainer.model.score)).float() % 5
            results.append(trainer.evaluate(test, load_best_model=False))
        assert results[0] == results[1] == results[2]

    def test_every_metric_and_cut_off_is_there(self, prepare):
        trainer, (_, valid, _) = prepare(metrics=["Hit", "MAP"], topk=[3, 1], valid_metric="Hit@3")
        result = trainer.evaluate(valid, load_best_model=False)
        assert list(result) == ["hit@3", "hit@1", "map@3", "map@1", "mrr"]

    def test_scores_that_are_not_numbers_are_refused(self, prepare):
        trainer, (_, valid, _) = prepare()
        trainer.model.score.data[3] = math.nan
        with pytest.raises(ValueError, match="Fixed's scores are not numbers before any training"):
            trainer.evaluate(valid, load_best_model=False)
        trainer.state.epochs_run = 3
        with pytest.raises(ValueError, match=r"numbers after epoch 2: .* learning_rate below"):
            trainer.evaluate(valid, load_best_model=False)

    def test_sampled_candidates_are_refused(self, prepare):
        trainer, (train, _, _) = prepare()
        with pytest.raises(ValueError, match="mode must be 'full'"):
            trainer.rank(train)

    def test_no_user_to_evaluate_is_none(self, prepare):
        trainer, _ = prepare()
        assert trainer.evaluate([]) is None


class TestFit:
    def test_the_best_epoch_is_restored(self, prepare):
        trainer, (train, valid, test) = prepare(epochs=3, learning_rate=0.1)
        scores = iter([0.1, 0.5, 0.3])
        kept = []

        def score(*_, **__):
            kept.append(trainer.model.score.detach().clone())
            return {"ndcg@10": next(scores)}

        trainer.evaluate = score
        best, _ = trainer.fit(train, valid)
        assert (best, trainer.state.best_epoch, trainer.state.epochs_run) == (0.5, 1, 3)
        assert not torch.equal(trainer.model.score, kept[1])
        trainer.load_best()
        assert torch.equal(trainer.model.score, kept[1])
        del trainer.evaluate
        assert trainer.evaluate(test) == trainer.evaluate(test, load_best_model=False)

    @pytest.mark.parametrize("eval_step", [1, 50])
    def test_time_ends_training_after_the_step_under_way(
        self, prepare, eval_step, clock, monkeypatch
    ):
        monkeypatch.setattr(Fixed, "after_step", lambda _: clock.advance(0.05))
        trainer, (train, valid, _) = prepare(
            epochs=100, max_train_seconds=0.12, eval_step=eval_step
        )
        assert len(train) > 4
        trainer.fit(train, valid)
        assert trainer.model.steps == 3
        assert trainer.state.epochs_run == 1
        assert trainer.state.best_epoch == 0
        assert set(trainer.best_valid_result) == {"recall@10", "ndcg@10", "mrr@10", "mrr"}
        assert trainer.state.stage_seconds["finetune"] == pytest.approx(0.15)

    def test_every_validation_is_a_point_of_the_curve(self, prepare, clock, monkeypatch):
        monkeypatch.setattr(Fixed, "after_step", lambda _: clock.advance(0.5))
        trainer, (train, valid, _) = prepare(epochs=4, eval_step=2)
        scores = iter([0.25, 0.5])
        trainer.evaluate = lambda *_, **__: {"ndcg@10": next(scores)}
        trainer.fit(train, valid)
        points = trainer.state.learning_curve
        seconds = [point.pop("seconds") for point in points]
        assert points == [
            {"stage": "train", "epoch": 1, "valid": 0.25},
            {"stage": "train", "epoch": 3, "valid": 0.5},
        ]
        assert seconds == [len(train), 2 * len(train)]

    def test_one_step_is_made_however_short_the_time(self, prepare):
        trainer, (train, valid, _) = prepare(epochs=100, max_train_seconds=1e-9)
        trainer.fit(train, valid)
        assert trainer.model.steps == 1

    def test_a_loss_that_is_not_finite_is_refused(self, prepare, monkeypatch):
        monkeypatch.setattr(Fixed, "loss_factor", math.inf)
        trainer, (train, valid, _) = prepare(epochs=1)
        with pytest.raises(
            ValueError, match=r"Fixed's training losses \(the last is inf\) .* after epoch 0"
        ):
            trainer.fit(train, valid)

    def test_weights_that_are_not_finite_are_not_saved(self, prepare):
        trainer, (train, _, _) = prepare(epochs=1)
        trainer.fit(train)
        before = trainer.state_file.read_bytes()
        trainer.model.score.data[1] = math.inf
        with pytest.raises(ValueError, match="Fixed's weights are not numbers after epoch 0"):
            trainer._save_checkpoint(1)
        assert trainer.state_file.read_bytes() == before

    def test_no_epoch_still_saves(self, prepare):
        trainer, (train, valid, _) = prepare(epochs=0)
        trainer.fit(train, valid)
        assert (trainer.state.epochs_run, trainer.state.best_epoch) == (0, None)
        trainer.load_best()

    def test_it_starts_from_a_checkpoint(self, prepare, workplace):
        trainer, (train, valid, _) = prepare(epochs=1)
        trainer.fit(train, valid)
        other, _ = prepare(epochs=0, checkpoint=str(workplace / "run"))
        other.fit(train, valid)
        assert torch.equal(other.model.score, trainer.model.score)
        assert other.state.checkpoint_from == str(workplace / "run" / "model.safetensors")


class TestFiles:
    def test_everything_is_in_the_run_folder(self, prepare, workplace):
        trainer, (train, valid, _) = prepare(epochs=1)
        trainer.fit(train, valid)
        trainer.tensorboard.close()
        assert [path.name for path in workplace.iterdir()] == ["run"]
        names = sorted(path.name.split(".")[0] for path in (workplace / "run").iterdir())
        assert names == ["events", "model", "state"]
        metadata = read_weights(trainer.saved_model_file)[1]
        state = load_state(trainer.state_file)
        assert metadata == {
            "model": "Fixed",
            "epoch": "0",
            "token": state["token"],
            "pretrain_datasets": "[]",
            "item_ids": item_ids_digest(train._dataset),
            "inputs": "{}",
        }
        assert (state["epoch"], type(state["best_valid_score"])) == (0, float)

    def test_without_run_folder_recboles_folders_serve(self, prepare, workplace):
        trainer, (train, valid, test) = prepare(epochs=1, run_dir=None)
        trainer.fit(train, valid)
        assert sorted(path.suffix for path in (workplace / "saved").iterdir()) == [
            ".pt",
            ".safetensors",
        ]
        assert trainer.evaluate(test)["mrr"] > 0

    def test_training_resumes(self, prepare, workplace):
        trainer, (train, valid, _) = prepare(epochs=2)
        trainer.fit(train)  # nothing validates, so that the last epoch is kept
        other, _ = prepare(epochs=5)
        other.resume_checkpoint(workplace / "run")
        assert other.start_epoch == 2
        assert torch.equal(other.model.score, trainer.model.score)
        momenta = other.optimizer.state_dict()["state"][0]["exp_avg"]
        assert torch.equal(momenta, trainer.optimizer.state_dict()["state"][0]["exp_avg"])
        other.fit(train, valid)
        assert other.state.epochs_run == 3

    def test_state_and_weights_of_different_saves_do_not_resume(self, prepare, workplace):
        trainer, (train, _, _) = prepare(epochs=1)
        trainer.fit(train)
        old = trainer.state_file.read_bytes()
        trainer._save_checkpoint(0)
        trainer.resume_checkpoint(workplace / "run")
        trainer.state_file.write_bytes(old)
        with pytest.raises(ValueError, match=r"state\.pt and model\.safetensors were not written"):
            trainer.resume_checkpoint(workplace / "run")

    def test_a_save_that_fails_keeps_the_old_weights(self, prepare, workplace, monkeypatch):
        trainer, (train, _, _) = prepare(epochs=1)
        trainer.fit(train)
        weights = workplace / "run" / "model.safetensors"
        old = weights.read_bytes()

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(protocol, "save_weights", fail)
        with pytest.raises(OSError, match="disk full"):
            trainer._save_checkpoint(1)
        assert weights.read_bytes() == old
        with pytest.raises(ValueError, match="were not written together"):
            trainer.resume_checkpoint(workplace / "run")

    def test_a_data_set_is_named_once(self, prepare):
        trainer, _ = prepare()
        trainer.state.pretrain_datasets = ["b", "a", "b"]
        trainer._save_checkpoint(0)
        assert trainer.state.pretrain_datasets == ["b", "a"]
        assert read_weights(trainer.saved_model_file)[1]["pretrain_datasets"] == '["b", "a"]'

    def test_weights_do_not_start_or_resume_for_items_in_another_order(
        self, prepare, workplace, monkeypatch
    ):
        trainer, (train, _, _) = prepare(epochs=1)
        trainer.fit(train)
        for start in ("checkpoint", "resume"):
            checkpoint = str(workplace / "run") if start == "checkpoint" else None
            other, (train, _, _) = prepare(epochs=2, checkpoint=checkpoint)
            if start == "resume":
                other.resume_checkpoint(workplace / "run")
            names = train._dataset.field2id_token["item_id"]
            names[[1, 2]] = names[[2, 1]]
            with pytest.raises(ValueError, match="other items or another order"):
                other.fit(train)
            if start == "checkpoint":
                with monkeypatch.context() as patch:
                    patch.setattr(RecBoleModel, "fits_any_catalogue", True)
                    other.fit(train, saved=False)

    def test_s3recs_two_stages_pass_weights_on(self, prepare, workplace):
        from recbole.model.sequential_recommender import S3Rec

        settings = {
            **TINY,
            "item_attribute": "categories",
            "load_col": {"inter": ["user_id", "item_id"], "item": ["item_id", "categories"]},
            "train_stage": "pretrain",
            "pretrain_epochs": 1,
            "save_step": 1,
        }
        settings.pop("train_batch_size")
        trainer, (train, valid, _) = prepare(S3RecTrainer, S3Rec, **settings)
        trainer.fit(train, valid)
        assert trainer.state.stage_seconds["pretrain"] > 0
        file = workplace / "run" / "S3Rec-toy-1.pth"
        assert "state_dict" in load_state(file)
        settings |= {"train_stage": "finetune", "pre_model_path": str(file)}
        finetuned, _ = prepare(S3RecTrainer, S3Rec, **settings)
        for name, weights in trainer.model.state_dict().items():
            assert torch.equal(finetuned.model.state_dict()[name], weights)


def test_mixing_in_is_done_once():
    mixed = with_protocol(Trainer)
    assert with_protocol(Trainer) is mixed
    assert with_protocol(mixed) is mixed
    assert issubclass(with_protocol(S3RecTrainer), (ProtocolTrainer, S3RecTrainer))
