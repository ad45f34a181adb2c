"""UniSRec against its paper's equations, written slowly, and through its stages."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import recbole_jepa4rec
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.model.item_vector_model import Windows
from recbole_jepa4rec.model.loss import contrastive_loss
from recbole_jepa4rec.model.unisrec import (
    MixtureOfExperts,
    ParametricWhitening,
    kept_first,
    kept_items,
    sequence_sequence_loss,
)
from recbole_jepa4rec.runner.quick_start import run
from tests.contract import SMALL, ModelContract
from tests.tiny_encoder import tiny_bert, write_data_sets  # noqa: F401

TINY = {
    "hidden_size": 16,
    "n_layers": 1,
    "n_heads": 2,
    "inner_size": 16,
    "n_experts": 3,
    "max_text_tokens": 32,
    "pretrain_epochs": 1,
    "epochs": 2,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "adaptor_dropout_prob": 0.0,
}


@pytest.fixture(scope="class", autouse=True)
def settings(request, tiny_bert):  # noqa: F811
    """The contract's settings, whose encoder is on disk only now."""
    if request.cls is not None and issubclass(request.cls, ModelContract):
        more = request.cls.more
        request.cls.settings = {**TINY, "text_encoder": str(tiny_bert), **more}


class TestUniSRec(ModelContract):
    model = "UniSRec"
    more: ClassVar = {}

    @torch.no_grad()
    def test_items_of_one_text_tie_exactly(self, net, rows):
        scores = net.full_sort_predict(rows)
        same = net.text.row_of_item
        pairs = [(i, j) for i in range(1, len(same)) for j in range(1, i) if same[i] == same[j]]
        ids = net.id_embedding is not None
        added = None if ids else net.add_items(pd.DataFrame([{"title": "Garden hose"}] * 2))
        if added is not None:
            scores = net.full_sort_predict(rows)
            pairs.append(tuple(added.tolist()))
        for i, j in pairs:
            assert torch.equal(scores[:, i], scores[:, j]) != ids

    @torch.no_grad()
    def test_no_prefix_sees_its_future(self, net):
        items = torch.randn(3, 7, 16)
        whole = net.encoder(items)
        for end in range(1, 8):
            other = items.clone()
            other[:, end:] = torch.randn(3, 7 - end, 16)
            assert torch.equal(net.encoder(other)[:, :end], whole[:, :end])
            cut = net.encoder(items[:, :end])
            torch.testing.assert_close(cut, whole[:, :end], atol=1e-5, rtol=1e-5)


class TestTransductive(TestUniSRec):
    more: ClassVar = {"finetune_mode": "transductive"}


class TestItsPretraining(TestUniSRec):
    more: ClassVar = {"train_stage": "pretrain"}

    def test_loss_is_finite_and_falls(self, net, parts):
        net.begin_phase("pretrain", 12)
        super().test_loss_is_finite_and_falls(net, parts)


def test_whitening_is_equation_3():
    layer = ParametricWhitening(5, 3, 0.5)
    nn.init.normal_(layer.bias)
    x = torch.randn(4, 5)
    for row in range(4):
        for d in range(3):
            slow = sum(
                (x[row, w].item() - layer.bias[w].item()) * layer.lin.weight[d, w].item()
                for w in range(5)
            )
            assert layer(x)[row, d].item() == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_mixture_is_equations_4_and_5(floor):
    torch.manual_seed(0)
    mixture = MixtureOfExperts(5, 3, 4, dropout=0.0, initializer_range=0.5, noise_floor=floor)
    nn.init.normal_(mixture.w_gate)
    nn.init.normal_(mixture.w_noise)
    x = torch.randn(6, 5)

    def slow(noise: torch.Tensor | None) -> torch.Tensor:
        out = torch.zeros(6, 3)
        for row in range(6):
            logits = []
            for k in range(4):
                logit = (x[row] @ mixture.w_gate[:, k]).item()
                if noise is not None:
                    spread = math.log1p(math.exp((x[row] @ mixture.w_noise[:, k]).item()))
                    logit += float(noise[row, k]) * (spread + floor)
                logits.append(logit)
            total = sum(map(math.exp, logits))
            for k in range(4):
                out[row] += math.exp(logits[k]) / total * mixture.experts[k](x[row]).detach()
        return out

    torch.testing.assert_close(mixture.eval()(x), slow(None), atol=1e-5, rtol=1e-5)
    torch.manual_seed(7)
    noisy = mixture.train()(x)
    torch.manual_seed(7)
    torch.testing.assert_close(noisy, slow(torch.randn(6, 4)), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_dropout_reaches_the_experts_and_not_the_gate(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    torch.manual_seed(0)
    width = 40
    mixture = MixtureOfExperts(width, width, experts=3, dropout=0.25, initializer_range=0.5)
    nn.init.normal_(mixture.w_gate)
    nn.init.normal_(mixture.w_noise)
    for k, expert in enumerate(mixture.experts):  # v is a multiple of what the experts read
        expert.lin.weight.copy_((k + 1) * torch.eye(width))
    x = torch.randn(9, width)
    dropped = 0
    for training in (True, False):
        out = mixture.train(training)(x)
        for row in range(9):
            logits = x[row] @ mixture.w_gate
            if training:
                logits = logits + torch.log1p(torch.exp(x[row] @ mixture.w_noise))
            gates = logits.exp() / logits.exp().sum()
            multiple = float(sum((k + 1) * gates[k] for k in range(3)))
            read = x[row] * (out[row] != 0) / (0.75 if training else 1.0)
            torch.testing.assert_close(out[row], multiple * read, atol=1e-5, rtol=1e-5)
        if training:
            dropped = int((out == 0).sum())
        else:
            assert out.all()
    assert dropped / x.numel() == pytest.approx(0.25, abs=0.06)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def test_sequence_sequence_is_equation_9():
    s, other = torch.randn(5, 4), torch.randn(5, 4)
    items, tau = [3, 8, 3, 1, 2], 0.3
    total = 0.0
    for j in range(5):
        below = 0.0
        for k in range(5):
            if k == j or items[k] != items[j]:
                below += math.exp(cosine(s[j], other[k]) / tau)
        total -= math.log(math.exp(cosine(s[j], other[j]) / tau) / below)
    loss = sequence_sequence_loss(s, other, torch.tensor(items), tau)
    assert loss.item() == pytest.approx(total / 5, abs=1e-5)


@pytest.fixture
def made(tiny_bert, tmp_path):  # noqa: F811
    def make(name="toy", **settings):
        given = {**SMALL, **TINY, "text_encoder": str(tiny_bert), "cache_dir": str(tmp_path)}
        config = Config("UniSRec", name, config_dict={**given, **settings})
        parts = find_dataset(config.model_class)(config).build()
        torch.manual_seed(3)
        return config.model_class(config, parts[0]), parts[0]

    return make


def windows(model, batch):
    """Items of each row's window followed by its target."""
    return [
        [*items[:n].tolist(), target]
        for items, n, target in zip(
            batch["item_id_list"],
            batch["item_length"].tolist(),
            batch["item_id"].tolist(),
            strict=True,
        )
    ]


def test_sequence_item_is_equation_8_at_every_position(made):
    model, data = made()
    model.eval().begin_phase("pretrain", 1)
    for expert in model.adaptor.experts:
        nn.init.normal_(expert.bias)
    batch = data.join(data.inter_feat[0:9])
    loss = model.calculate_loss(batch)[0].item()
    rows = model.text.row_of_item
    wanted = [item for window in windows(model, batch) for item in window[1:]]
    candidates = sorted({int(rows[item]) for item in wanted})
    terms = []
    for window in windows(model, batch):
        for end in range(1, len(window)):
            vectors = model.adaptor(model.text.table[rows[window[:end]]])
            s = model.encoder(vectors[None])[0, -1]
            logits = {r: cosine(s, model.adaptor(model.text.table[r])) / 0.07 for r in candidates}
            below = sum(math.exp(value) for value in logits.values())
            terms.append(-math.log(math.exp(logits[int(rows[window[end]])]) / below))
    assert loss == pytest.approx(sum(terms) / len(terms), abs=1e-4)


def test_pretraining_adds_lambda_times_equation_9_by_the_last_targets(made):
    """Without dropped items a window's augmentation is the window."""
    model, data = made(sequence_sequence_weight=0.25, item_drop_ratio=0.0, item_drop_share=1.0)
    model.eval().begin_phase("pretrain", 1)
    batch = data.join(data.inter_feat[0:30])
    one, two = (loss.item() for loss in model.calculate_loss(batch))
    rows, seen = model.text.row_of_item, windows(model, batch)
    first, last = ([int(rows[window[at]]) for window in seen] for at in (1, -1))
    pairs = [(j, k) for j in range(30) for k in range(j)]
    assert any(first[j] == first[k] and last[j] != last[k] for j, k in pairs)
    assert any(first[j] != first[k] and last[j] == last[k] for j, k in pairs)
    s = []
    for window in seen:
        vectors = model.adaptor(model.text.table[rows[window[:-1]]])
        s.append(model.encoder(vectors[None])[0, -1])
    total = 0.0
    for j in range(30):
        rivals = [k for k in range(30) if k == j or last[k] != last[j]]
        below = sum(math.exp(cosine(s[j], s[k]) / 0.07) for k in rivals)
        total -= math.log(math.exp(cosine(s[j], s[j]) / 0.07) / below)
    assert two == pytest.approx(0.25 * total / 30, rel=1e-3)
    assert model.loss_weights == {"sequence_item": 1.0, "sequence_sequence": 0.25}

    other = made(sequence_sequence_weight=0.0, item_drop_ratio=0.0, item_drop_share=1.0)[0]
    other.eval().begin_phase("pretrain", 1)
    assert [loss.item() for loss in other.calculate_loss(batch)] == [pytest.approx(one), 0.0]


@torch.no_grad()
def test_an_empty_history_is_zero_and_likes_all_items_alike(made):
    model, data = made()
    model.eval()
    batch = data.join(data.inter_feat[0:3])
    whole = model.full_sort_predict(batch)
    batch["item_id_list"][1], batch["item_length"][1] = 0, 0
    sequences = model(model.packed(batch))
    assert sequences.any(dim=1).tolist() == [True, False, True]
    scores = model.full_sort_predict(batch)
    assert not scores[1].any() and scores.isfinite().all()
    torch.testing.assert_close(scores[[0, 2]], whole[[0, 2]])


def test_the_adaptor_has_the_dropout_of_its_key(made):
    assert made(adaptor_dropout_prob=0.3)[0].adaptor.dropout.p == 0.3


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_finetuning_is_equations_11_and_12_at_every_position(made, mode):
    model, data = made(finetune_mode=mode, history_bias=False)
    model.eval().begin_phase("finetune", 1)
    for expert in model.adaptor.experts:
        nn.init.normal_(expert.bias)
    batch = data.join(data.inter_feat[0:6])
    table = model.adaptor(model.text.table[model.text.row_of_item])
    if mode == "transductive":
        nn.init.normal_(model.id_embedding.weight)
        table = table + model.id_embedding.weight
    alike = model.text.row_of_item if mode == "inductive" else torch.arange(data.item_num)
    firsts = [alike.tolist().index(row) for row in sorted(set(alike[1:].tolist()))]
    terms = []
    for window in windows(model, batch):
        for end in range(1, len(window)):
            s = model.encoder(table[window[:end]][None])[0, -1]
            logits = {int(alike[i]): cosine(s, table[i]) / 0.07 for i in firsts}
            below = sum(math.exp(value) for value in logits.values())
            terms.append(-math.log(math.exp(logits[int(alike[window[end]])]) / below))
    assert model.calculate_loss(batch)[0].item() == pytest.approx(np.mean(terms), abs=1e-4)


def test_item_drop_keeps_the_order_and_one_item():
    inside = torch.arange(400) < torch.tensor([1, 4, 400])[:, None]
    keys = torch.tensor([5, 6, 7])
    kept = kept_items(inside, 0.2, keys)
    assert kept.sum(dim=1)[0] == 1 and 0.72 < kept[2].float().mean() < 0.88
    assert not kept[1, 4:].any()
    assert kept_items(inside, 1.0, keys).sum(dim=1).tolist() == [1, 1, 1]
    assert torch.equal(kept[1:2], kept_items(inside[1:2], 0.2, keys[1:2]))
    order = kept_first(kept)
    for row in range(3):
        left = [i for i in range(400) if kept[row, i]]
        assert order[row, : len(left)].tolist() == left


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_augmented_sequences_are_dropped_items_or_dropped_words(made, share):
    model, data = made(item_drop_share=0.5, word_drop_items=share)
    model.eval().begin_phase("pretrain", 1)
    batch = data.join(data.inter_feat[0:40])
    windows, n = Windows.of(model.packed(batch)), batch["item_length"]
    keys = torch.arange(40) * 977
    rows = model.text.row_of_item[windows.items]
    got = model._augmented(model.adaptor(model.text.table[rows]), windows, keys)
    kept = kept_items(windows.inside, 0.2, keys)
    seen = set()
    for row in range(40):
        fewer = model.adaptor(model.text.table[rows[row][kept[row]]])
        words = uniform(derive(keys[row], Draw.WORD_DROP, torch.arange(n[row]))) < share
        here = rows[row, : n[row]]
        texts = torch.where(words[:, None], model.word_dropped[here], model.text.table[here])
        worded = model.adaptor(texts)
        by_items, by_words = (model.encoder(v[None])[0, -1] for v in (fewer, worded))
        near = [torch.allclose(got[row], one, atol=1e-5) for one in (by_items, by_words)]
        assert any(near)
        seen.add(tuple(near))
    assert {(True, False), (False, True)} <= seen


def test_whitening_starts_at_the_mean_of_the_texts(made):
    model, _ = made(train_stage="finetune")
    texts = model.text.table[1:]
    for expert in model.adaptor.experts:
        for width in range(24):
            mean = sum(texts[:, width].tolist()) / len(texts)
            assert expert.bias[width].item() == pytest.approx(mean, abs=1e-5)


class TestFixedEncoder:
    def test_only_the_adaptor_and_the_norm_of_the_input_move(self, made):
        model, data = made(fix_encoder=True, history_bias=False)
        model.begin_phase("finetune", 1)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        others = {name for name in trained if not name.startswith("adaptor.")}
        assert others == {"encoder.LayerNorm.weight", "encoder.LayerNorm.bias"} < trained
        model.calculate_loss(data.join(data.inter_feat[0:9]))[0].backward()
        assert model.adaptor.w_gate.grad is not None
        model.begin_phase("pretrain", 1)
        assert all(p.requires_grad for p in model.parameters())

    def test_it_needs_pretraining(self, made):
        with pytest.raises(ValueError, match="fix_encoder is True without pre-training"):
            made(fix_encoder=True, train_stage="finetune")


def test_a_wrong_mode_is_refused(made):
    with pytest.raises(ValueError, match="finetune_mode is 'both'; allowed: inductive, trans"):
        made(finetune_mode="both")


class TestPublishedWeights:
    @pytest.fixture
    def theirs(self, made):
        model = made(train_stage="finetune", history_bias=False)[0]
        state = {}
        for name, tensor in model.state_dict().items():
            for prefix, theirs in (("encoder.", ""), ("adaptor.", "moe_adaptor.")):
                if name.startswith(prefix):
                    state[theirs + name.removeprefix(prefix)] = torch.rand_like(tensor)
        return state

    def test_they_are_mapped_by_name(self, made, theirs, tmp_path):
        file = tmp_path / "UniSRec.pth"
        theirs["item_embedding.weight"] = torch.rand(99, 16)
        torch.save({"state_dict": theirs, "epoch": 3}, file)
        model = made(encoder_checkpoint=str(file), train_stage="finetune", fix_encoder=True)[0]
        own = model.state_dict()
        assert torch.equal(own["adaptor.experts.1.bias"], theirs["moe_adaptor.experts.1.bias"])
        name = "trm_encoder.layer.0.feed_forward.dense_1.weight"
        assert torch.equal(own[f"encoder.{name}"], theirs[name])
        assert len(own) == len(theirs) - 1 + len(model.head.state_dict())

    def test_what_does_not_fit_is_refused_in_one_line(self, made, theirs, tmp_path):
        file = tmp_path / "UniSRec.pth"
        for change, message in (
            ({"other.weight": torch.ones(1)}, r"other.weight \[1\] is unknown"),
            ({"moe_adaptor.w_gate": torch.ones(7, 3)}, r"adaptor.w_gate is \[7, 3\] instead"),
        ):
            torch.save({**theirs, **change}, file)
            with pytest.raises(ValueError, match=message) as error:
                made(encoder_checkpoint=str(file), train_stage="finetune")
            assert "\n" not in str(error.value)

    def test_pickled_objects_are_refused(self, made, theirs, tmp_path):
        file = tmp_path / "UniSRec.pth"
        torch.save({"config": ModelContract(), "state_dict": theirs}, file)
        with pytest.raises(ValueError, match="holds more than plain values") as error:
            made(encoder_checkpoint=str(file), train_stage="finetune")
        assert "\n" not in str(error.value)


class TestTransfer:
    @pytest.fixture
    def train(self, tiny_bert, tmp_path):  # noqa: F811
        titles = [
            f"{color} {thing}"
            for color in ("red", "blue", "steel")
            for thing in ("garden hose", "knife", "can", "spade")
        ]
        write_data_sets(tmp_path / "data", one=titles[:9], two=titles[4:], three=titles[::-1][:10])
        common = {**SMALL, **TINY, "text_encoder": str(tiny_bert), "cache_dir": str(tmp_path)}

        def call(name, dataset, **settings):
            given = {**common, "data_path": str(tmp_path / "data"), **settings}
            folder = str(tmp_path / name)
            return folder, run("UniSRec", dataset, config_dict={**given, "run_dir": folder})

        return call

    @pytest.mark.parametrize("mode", ["inductive", "transductive"])
    def test_two_data_sets_pretrain_for_a_third(self, train, mode):
        source, first = train("source", "one,two", train_stage="pretrain", finetune_mode=mode)
        assert first["tokens_per_second"] is None and first["statistics"]["items"] == 17
        target, result = train("target", "three", checkpoint=source, finetune_mode=mode)
        assert result["pretrain_datasets"] == ["one", "two"] and result["stage"] == "finetune"
        model = recbole_jepa4rec.load(target)
        histories = [["i1", "i2", "i3"]]
        found = model.recommend(histories, k=3)
        assert len(found) == 3
        assert model.model.fits_any_catalogue == (mode == "inductive")
        if mode == "inductive":
            model.add_items({"new": {"title": "green garden hose"}})
            assert len(model.recommend([["new"]], k=99)) == 11
            before = model.recommend([["i1", "i2"]], k=99).set_index("item_id")["score"]
            model.update_items({"i5": {"title": "green garden hose"}})
            after = model.recommend([["i1", "i2"]], k=99).set_index("item_id")["score"]
            assert after["i5"] == after["new"] == before["new"] != before["i5"]

    def test_ids_of_another_catalogue_start_anew(self, train):
        source, _ = train("source", "one", finetune_mode="transductive")
        target, _ = train(
            "target", "three", finetune_mode="transductive", checkpoint=source, epochs=0
        )
        old, new = (recbole_jepa4rec.load(folder).model for folder in (source, target))
        assert torch.equal(old.adaptor.w_gate, new.adaptor.w_gate)
        assert new.id_embedding.weight.shape == (11, 16)
        again, _ = train("again", "one", finetune_mode="transductive", checkpoint=source, epochs=0)
        assert torch.equal(
            recbole_jepa4rec.load(again).model.id_embedding.weight, old.id_embedding.weight
        )

    def test_a_transductive_run_is_for_its_items_alone(self, train):
        source, _ = train("source", "one", finetune_mode="transductive")
        with pytest.raises(ValueError, match="do not fit"):
            recbole_jepa4rec.load(source, dataset="three")


def test_contrast_helper_agrees_with_the_paper_s_temperature():
    """Cosine / tau: scaling a vector changes nothing."""
    s, v = torch.randn(4, 3), torch.randn(5, 3)
    positive = torch.tensor([0, 2, 4, 1])
    one, two = (contrastive_loss(s * k, v / k, positive, 0.07) for k in (1.0, 7.0))
    torch.testing.assert_close(one, two)
