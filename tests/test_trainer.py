"""Phases, schedules, target draws and stopping of the two-stage trainer."""

import logging
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import recbole_jepa4rec
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.evaluation.ranking import rank_targets
from recbole_jepa4rec.model.jepa4rec import JEPA4Rec
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.training import optimisation
from recbole_jepa4rec.training.collapse import spread, warn_if_collapsed
from recbole_jepa4rec.training.optimisation import Optimisation, warmup_then_decay
from recbole_jepa4rec.training.phase_trainer import PhaseTrainer
from recbole_jepa4rec.training.phases import (
    held_out_users,
    phases_of,
    target_positions,
    trainable_users,
)

SMALL = {
    "data_path": "dataset",
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 300,
    "pretrain_batch_size": 16,
    "train_batch_size": 16,
    "pretrain_epochs": 2,
    "epochs": 2,
    "frozen_items_epochs": 1,
    "eval_step": 1,
    "show_progress": False,
    "pretrain_validation_ratio": 0.2,
    "use_gpu": False,
}


@pytest.fixture
def train(tmp_path):
    """Run JEPA4Rec on the toy set; returns what result.json holds."""

    def call(name="run", **settings):
        folder = tmp_path / name
        return run(
            "JEPA4Rec",
            "toy",
            config_dict={**SMALL, "cache_dir": str(tmp_path), "run_dir": str(folder), **settings},
        )

    return call


@pytest.fixture
def histories():
    lengths = torch.tensor([0, 1, 2, 3, 4, 30])  # user 0 is padding
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Histories(items=torch.arange(40), offsets=offsets)


def test_users_train_who_have_a_history_and_a_target(histories):
    assert trainable_users(histories).tolist() == [2, 4, 5]


def test_targets_never_leave_the_training_part_and_reach_all_of_it(histories):
    users = torch.tensor([2, 4, 5])
    seen = {2: set(), 4: set(), 5: set()}
    for epoch in range(300):
        positions = target_positions(histories, users, 2020, epoch)
        owners = histories.users[positions]
        assert sorted(owners.tolist()) == [2, 4, 5]
        for owner, position in zip(owners.tolist(), positions.tolist(), strict=True):
            seen[owner].add(position - int(histories.offsets[owner]))
    assert seen == {2: {1}, 4: {1}, 5: set(range(1, 28))}


def positions_of_user_5(histories, **bounds):
    """Places, from 0, of the targets that are drawn from the user's 28 training items."""
    users = torch.tensor([5])
    drawn = {int(target_positions(histories, users, 1, epoch, **bounds)) for epoch in range(600)}
    return {position - int(histories.offsets[5]) for position in drawn}


def test_targets_can_be_drawn_from_the_later_half_or_from_all_items(histories):
    later_half = set(range((28 - 1) // 2, 28))  # RecFormer's pre-training
    assert positions_of_user_5(histories, earliest=0.5) == later_half
    assert positions_of_user_5(histories, least_history=0) == set(range(28))  # its finetuning
    assert trainable_users(histories, 0).tolist() == [1, 2, 3, 4, 5]
    alone = torch.tensor([1, 3])  # their training parts hold one item
    drawn = target_positions(histories, alone, 1, 1, least_history=0)
    assert sorted(drawn.tolist()) == histories.offsets[alone].tolist()


def test_a_user_s_target_depends_on_seed_epoch_and_user_alone(histories):
    def target_of_user_5(users, seed=2020, epoch=3):
        positions = target_positions(histories, torch.tensor(users), seed, epoch)
        return positions[histories.users[positions] == 5].item()

    assert target_of_user_5([2, 4, 5]) == target_of_user_5([5]) == target_of_user_5([5, 4])
    others = {
        target_of_user_5([5], seed=seed, epoch=epoch) for seed in range(4) for epoch in range(9)
    }
    assert len(others) > 10


def test_held_out_users_are_about_the_share_and_always_the_same():
    users = torch.arange(1, 10_001)
    held_out = held_out_users(users, 0.05, 2020)
    assert held_out.float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert torch.equal(held_out[500:600], held_out_users(users[500:600], 0.05, 2020))
    assert not torch.equal(held_out, held_out_users(users, 0.05, 2021))


def test_learning_rate_rises_then_falls_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_then_decay(optimizer, 20, 4)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4:] == pytest.approx([2.0 * (20 - step) / 16 for step in range(4, 20)])
    assert optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize(
    ("decays", "rates"), [(True, [2.0 * (5 - step) / 5 for step in range(5)]), (False, [2.0] * 5)]
)
def test_without_steps_to_rise_in_it_begins_at_its_peak(decays, rates):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_then_decay(optimizer, 5, 0, decays)
    for rate in rates:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        optimizer.step()
        schedule.step()


def test_each_phase_has_its_own_schedule_clipping_and_patience(histories):
    given = {
        **{"pretrain_epochs": 1, "epochs": 2, "frozen_items_epochs": 3, "stopping_step": 5},
        **{"pretrain_warmup_steps": 0, "warmup_steps": 100, "clip_grad_norm": {"max_norm": 1.0}},
        **{"finetune_unclipped": True, "frozen_items_stopping_step": 3},
        **{"pretrain_validation_ratio": 0.0, "pretrain_time_ratio": 0.5, "seed": 1},
        **{"pretrain_earliest_target": 0.5, "finetune_empty_histories": True},
    }
    config = defaultdict(lambda: None, given)
    model = SimpleNamespace(learns_permutation=False)
    phases = phases_of(config, "both", histories, model, dict, dict, 0.0, math.inf)
    seen = [
        (p.name, p.warmup_steps, p.clipping, p.stopping_step, p.earliest_target, p.users.tolist())
        for p in phases
    ]
    assert seen == [
        ("pretrain", 0, {"max_norm": 1.0}, 5, 0.5, [2, 4, 5]),
        ("finetune", 100, None, 5, 0.0, [1, 2, 3, 4, 5]),
        ("finetune_frozen_items", 100, None, 3, 0.0, [1, 2, 3, 4, 5]),
    ]


def test_a_run_trains_on_late_targets_and_then_on_first_items_too(train):
    result = train(
        training_targets="random",
        pretrain_earliest_target=0.5,
        finetune_empty_histories=True,
        history_bias=True,
        neighbour_prior=True,
        pretrain_warmup_steps=0,
        warmup_steps=3,
        learning_rate_decay=False,
        frozen_items_stopping_step=1,
    )
    assert result["status"] == "finished" and result["epochs"] == 5


def test_both_stages_run_and_report(train):
    result = train()
    assert result["stage"] == "both" and result["status"] == "finished"
    assert result["epochs"] == 5
    assert result["seconds"]["pretrain"] > 0 and result["seconds"]["finetune"] > 0
    assert result["pretrain_datasets"] == ["toy"]
    assert result["tokens_per_second"] > 0
    assert 0 <= result["test"]["ndcg@10"] <= 1


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(train):
    first, again, other = train("a"), train("b"), train("c", seed=7)
    assert first["valid"] == again["valid"] and first["test"] == again["test"]
    assert first["test"]["mrr"] != other["test"]["mrr"]


def test_pretraining_then_finetuning_from_its_checkpoint(train):
    before = train("pretrained", train_stage="pretrain")
    assert before["seconds"]["finetune"] == 0
    folder = before["path"].rsplit("/", 1)[0]
    after = train("finetuned", train_stage="finetune", checkpoint=folder)
    assert after["pretrain_datasets"] == ["toy"]
    assert after["checkpoint_from"].startswith(folder)
    zero_shot = train("zero", checkpoint=folder, epochs=0)
    assert zero_shot["test"] == before["test"] and zero_shot["valid"] == before["valid"]
    assert zero_shot["epochs"] == 0 and zero_shot["stage"] == "finetune"


@pytest.mark.parametrize("mode", ["random", "all_prefixes"])
def test_a_checkpoint_of_the_other_mode_is_refused(train, mode):
    other = {"random": "all_prefixes", "all_prefixes": "random"}[mode]
    folder = train(mode, train_stage="pretrain", training_targets=mode)["path"].rsplit("/", 1)[0]
    with pytest.raises(ValueError, match=f"training_targets={other}; .*training_targets={mode}"):
        train("mixed", checkpoint=folder, training_targets=other)
    assert train("same", checkpoint=folder, training_targets=mode)["checkpoint_from"]
    assert recbole_jepa4rec.load(folder).model.training_targets == mode


def test_batches_hold_no_more_tokens_than_the_budget(train, monkeypatch):
    seen = []
    losses = JEPA4Rec.losses

    def spy(self, histories):
        seen.append((len(histories), self.core._read(histories).num_tokens))
        return losses(self, histories)

    monkeypatch.setattr(JEPA4Rec, "losses", spy)
    train(tokens_per_batch=200, train_batch_size=100, pretrain_batch_size=100)
    assert max(tokens for _, tokens in seen) <= 200
    assert sum(tokens for _, tokens in seen) / len(seen) > 120


def test_validation_of_pretraining_is_that_of_the_protocol(train):
    """Held-out users select the epoch; ``valid`` in result.json is the validation split's."""
    alone = train("alone", train_stage="pretrain")
    both = train("both", epochs=0)
    assert both["valid"] == alone["valid"] and both["test"] == alone["test"]


@pytest.mark.parametrize("mode", ["random", "all_prefixes"])
def test_held_out_users_validate_pretraining_and_never_train_in_it(train, monkeypatch, mode):
    trained, validated, everybody = set(), set(), set()
    step, validate = Optimisation.step, PhaseTrainer._validate_held_out

    def watch_training(self, batches):
        everybody.update(trainable_users(self.histories).tolist())
        for positions in batches:
            trained.update(self.histories.users[positions].tolist())
        return step(self, batches)

    def watch_validation(self, positions):
        validated.update(self.rows.histories.users[positions].tolist())
        return validate(self, positions)

    monkeypatch.setattr(Optimisation, "step", watch_training)
    monkeypatch.setattr(PhaseTrainer, "_validate_held_out", watch_validation)
    train(train_stage="pretrain", training_targets=mode)
    assert trained and validated and not trained & validated
    assert trained | validated == everybody


def write_histories(folder, last, shift):
    """40 users over the toy items, who pass the items of their ``last`` interactions on.

    All training parts come first in the file, so that items are always numbered alike.
    """
    text = Path("dataset/toy/toy.item").read_text(encoding="utf-8")
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "toy.item").write_text(text, encoding="utf-8")
    items = [line.partition("\t")[0] for line in text.splitlines()[1:]]
    generator = np.random.default_rng(0)
    histories = [list(generator.permutation(items)[: 6 + user % 4]) for user in range(40)]
    ends = [history[-last:] for history in histories]
    assert {item for history in histories for item in history[:-2]} == {*items}
    for user, history in enumerate(histories):
        history[-last:] = ends[(user + shift) % 40]
    lines = [
        (place >= len(history) - 2, f"u{user}\t{item}\t{place}")
        for user, history in enumerate(histories)
        for place, item in enumerate(history)
    ]
    rows = [line for _, line in sorted(lines, key=lambda pair: pair[0])]
    rows = ["user_id:token\titem_id:token\ttimestamp:float", *rows]
    (folder / "toy" / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("mode", ["random", "all_prefixes"])
@pytest.mark.parametrize(("stage", "last"), [("pretrain", 2), ("both", 1)])
def test_training_knows_nothing_of_what_is_held_back(train, tmp_path, stage, last, mode):
    """Of the validation and test targets in pre-training, of the test targets in finetuning."""
    weights, curves, tests = [], [], []
    for name, shift in (("own", 0), ("others", 7)):
        data = write_histories(tmp_path / f"data-{name}", last, shift)
        result = train(name, data_path=data, train_stage=stage, training_targets=mode)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        points = result["learning_curve"]
        curves.append([(point["stage"], point["epoch"], point["valid"]) for point in points])
        tests.append(result["test"])
    assert tests[0] != tests[1]
    assert curves[0] == curves[1] != []
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_data_sets_pretrain_for_a_third(train, tmp_path):
    data = tmp_path / "data"
    for name in ("one", "two", "three"):
        (data / name).mkdir(parents=True)
        for suffix in ("inter", "item"):
            text = Path("dataset/toy", f"toy.{suffix}").read_text(encoding="utf-8")
            (data / name / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    given = {**SMALL, "cache_dir": str(tmp_path), "data_path": str(data)}
    folder = str(tmp_path / "source")
    source = run(
        "JEPA4Rec", "one,two", config_dict={**given, "train_stage": "pretrain", "run_dir": folder}
    )
    assert source["pretrain_datasets"] == ["one", "two"]
    assert source["statistics"]["users"] == 80
    given["checkpoint"] = folder
    target = run("JEPA4Rec", "three", config_dict={**given, "run_dir": str(tmp_path / "target")})
    assert target["pretrain_datasets"] == ["one", "two"] and target["epochs"] == 3


def test_no_validation_rows_keep_the_last_weights(tmp_path):
    """RecBole allows ``fit`` without validation data."""
    from recbole_jepa4rec.config.registry import find_trainer
    from recbole_jepa4rec.runner.single_run import loaders

    given = {**SMALL, "cache_dir": str(tmp_path), "checkpoint_dir": str(tmp_path)}
    config = Config("JEPA4Rec", "toy", config_dict=given)
    config, train_rows, _, test_rows = loaders(config, SequentialTextDataset(config))
    model = config.model_class(config, train_rows._dataset)
    trainer = find_trainer(config.model_class, config)(config, model)
    assert trainer.fit(train_rows)[1] is None
    assert trainer.evaluate(test_rows)["mrr"] > 0


def test_epochs_zero_everywhere_tests_the_untrained_model(train):
    result = train(pretrain_epochs=0, epochs=0, frozen_items_epochs=0)
    assert result["epochs"] == 0 and result["test"]["mrr"] > 0


def test_time_limit_stops_every_phase_and_still_tests(train):
    result = train(epochs=10_000, pretrain_epochs=10_000, max_train_seconds=2, stopping_step=0)
    assert result["seconds"]["pretrain"] + result["seconds"]["finetune"] < 10
    assert result["seconds"]["pretrain"] > 0 and result["seconds"]["finetune"] > 0
    assert "ndcg@10" in result["test"]


def test_no_improvement_stops_a_phase(train):
    result = train(
        learning_rate=0.0, epochs=50, stopping_step=2, pretrain_epochs=0, frozen_items_epochs=0
    )
    assert result["epochs"] == 3 and result["best_epoch"] == 0


def test_frozen_items_have_a_patience_of_their_own(train):
    still = {"learning_rate": 0.0, "pretrain_epochs": 0, "frozen_items_epochs": 50}
    result = train(**still, epochs=1, stopping_step=20, frozen_items_stopping_step=2)
    assert result["epochs"] == 1 + 2


def test_a_run_clips_and_warms_up_as_its_phases_say(train, monkeypatch):
    rates, clipped, step = {"pretrain": [], "finetune": []}, [], Optimisation.step

    def watch(self, batches):
        rates[self.model.phase].append(self.optimizer.param_groups[0]["lr"])
        return step(self, batches)

    def watch_clipping(_, max_norm):
        clipped.append(max_norm)

    monkeypatch.setattr(Optimisation, "step", watch)
    monkeypatch.setattr(optimisation, "clip_grad_norm_", watch_clipping)
    train(
        learning_rate=0.003,
        pretrain_learning_rate=0.002,
        warmup_steps=3,
        pretrain_warmup_steps=0,
        clip_grad_norm={"max_norm": 0.5},
        finetune_unclipped=True,
        frozen_items_epochs=0,
    )
    n = len(rates["pretrain"])
    assert rates["pretrain"] == pytest.approx([0.002 * (n - k) / n for k in range(n)])
    assert rates["finetune"][:4] == pytest.approx([0.001, 0.002, 0.003, 0.003])
    assert rates["finetune"][4] < 0.003
    assert clipped == [0.5] * n


@pytest.mark.parametrize("mode", ["random", "all_prefixes"])
@pytest.mark.parametrize("accumulation", [2, 3])
def test_accumulated_gradients_equal_one_larger_finetuning_batch(train, accumulation, mode):
    """Finetuning's loss is a mean over targets, so that k batches of n are one of k n."""
    common = {"pretrain_epochs": 0, "frozen_items_epochs": 0, "epochs": 1, "dropout": 0.0}
    sequences = 60  # there are fewer
    whole = train("whole", train_batch_size=sequences, training_targets=mode, **common)
    parts = train(
        "parts",
        train_batch_size=sequences // accumulation,
        accumulation_steps=accumulation,
        training_targets=mode,
        **common,
    )
    assert parts["test"]["mrr"] == pytest.approx(whole["test"]["mrr"], abs=1e-3)


def test_bf16_trains_and_is_not_float32(train):
    common = {"pretrain_epochs": 1, "frozen_items_epochs": 0, "epochs": 1}
    exact, rounded = train("fp32", **common), train("bf16", precision="bf16", **common)
    assert 0 < rounded["valid"]["mrr"] != exact["valid"]["mrr"]


def test_a_loss_that_is_not_finite_is_named(train):
    with pytest.raises(ValueError, match=r"not finite.*sequence_item.*learning_rate"):
        train(pretrain_learning_rate=1e30, clip_grad_norm=None)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("train_stage", "finetun", "pretrain, finetune, both"),
        ("precision", "fp8", "fp32, bf16, fp16"),
        ("mapping_reduction", "max", "sum, mean"),
        ("item_encoder", "both", "context, target"),
        ("history_mask_ratio", 1.5, "0 to 1"),
        ("temperature", 0, "above 0"),
        ("accumulation_steps", 0, "whole number from 1"),
        ("accumulation_steps", 1.5, "whole number"),
        ("pretrain_epochs", -1, "whole number from 0"),
        ("pretrain_batch_size", 0, "whole number from 1"),
        ("tokens_per_batch", 0, "whole number from 1"),
        ("warmup_ratio", -3, "0 to 1"),
        ("pretrain_validation_ratio", 1, "below 1"),
        ("num_heads", 0, "whole number from 1"),
        ("enable_amp", True, "precision"),
        ("item_encoder", "target", "items_per_step"),
        ("hidden_size", 17, "num_heads"),
        ("max_attribute_tokens", 0, "whole number from 2"),
    ],
)
def test_values_that_cannot_be_honoured_are_refused_by_name(train, key, value, allowed):
    with pytest.raises(ValueError, match=allowed) as error:
        train(**{key: value})
    assert key in str(error.value) and "\n" not in str(error.value)


def test_several_data_sets_pretrain_and_do_not_finetune(tmp_path):
    with pytest.raises(ValueError, match=r"train_stage.*pretrain"):
        run("JEPA4Rec", "toy,ml-100k", config_dict={**SMALL, "run_dir": str(tmp_path / "x")})


def test_collapse_is_measured_and_warned_of(caplog):
    generator = torch.Generator().manual_seed(1)
    healthy = spread(torch.randn(500, 16, generator=generator))
    assert healthy["std"] == pytest.approx(1.0, abs=0.05)
    assert healthy["effective_rank"] == pytest.approx(16, abs=1)
    direction = torch.randn(1, 16, generator=generator)
    line = spread(torch.randn(500, 1, generator=generator) @ direction)
    assert line["effective_rank"] == pytest.approx(1, abs=0.01)
    point = spread(direction.repeat(500, 1))
    assert point["std"] == pytest.approx(0, abs=1e-5) and math.isfinite(point["effective_rank"])
    with caplog.at_level(logging.WARNING):
        assert not warn_if_collapsed(healthy, 500)
        assert warn_if_collapsed(line, 500) and warn_if_collapsed(point, 500)
    assert "collapse" in caplog.text


@pytest.mark.parametrize("items", [1, 2, 3, 4])
def test_few_items_span_few_dimensions_and_that_is_no_collapse(caplog, items):
    vectors = torch.randn(items, 16, generator=torch.Generator().manual_seed(1))
    measured = spread(vectors)
    assert measured["effective_rank"] < max(2, items - 1 + 1e-3)
    with caplog.at_level(logging.WARNING):
        assert not warn_if_collapsed(measured, items)
    assert not caplog.text
    if items > 1:
        assert warn_if_collapsed(spread(vectors[:1].repeat(items, 1)), items)


def test_config_of_the_toy_set_builds(tmp_path):
    config = Config("JEPA4Rec", "toy", config_dict={**SMALL, "run_dir": str(tmp_path)})
    assert SequentialTextDataset(config).item_text.shape[1] >= 1


def test_epochs_are_validated_with_some_users_and_the_best_with_all(workplace, toy, monkeypatch):
    ranked = []

    def counted(rows, *rest, **more):
        ranked.append(len(rows))
        return rank_targets(rows, *rest, **more)

    monkeypatch.setattr("recbole_jepa4rec.training.protocol.rank_targets", counted)
    given = {"model": "JEPA4Rec", **toy, "show_progress": False, "cache_dir": "cache"}
    given |= {"pretrain_epochs": 0, "epochs": 1, "frozen_items_epochs": 0}
    whole = run(config_dict={**given, "run_dir": "a"})
    users = ranked[0]
    some = run(config_dict={**given, "run_dir": "b", "validation_users": 7})
    assert ranked == [users, users, 7, users, users]
    assert some["valid"] == whole["valid"]
    assert some["test"] == whole["test"]
    assert some["learning_curve"][0]["valid"] != whole["learning_curve"][0]["valid"]
    more = run(config_dict={**given, "run_dir": "c", "validation_users": users + 9})
    assert more["learning_curve"][0]["valid"] == whole["learning_curve"][0]["valid"]
