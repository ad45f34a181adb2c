"""VQRec against its paper's equations, written slowly, and through its stages."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import recbole_jepa4rec
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.model.item_codes import (
    CodePermutation,
    ProductQuantiser,
    mean_of_codes,
    procrustes,
    replaced_digits,
    sinkhorn,
)
from recbole_jepa4rec.runner.quick_start import run
from tests.contract import SMALL, ModelContract
from tests.tiny_encoder import tiny_bert, write_data_sets  # noqa: F401

TINY = {
    "hidden_size": 16,
    "n_layers": 1,
    "n_heads": 2,
    "inner_size": 16,
    "code_digits": 4,
    "code_values": 8,
    "max_text_tokens": 32,
    "pretrain_epochs": 1,
    "permutation_epochs": 2,
    "epochs": 2,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
}


@pytest.fixture(scope="class", autouse=True)
def settings(request, tiny_bert):  # noqa: F811
    """The contract's settings, whose encoder is on disk only now."""
    if request.cls is not None and issubclass(request.cls, ModelContract):
        more = request.cls.more
        request.cls.settings = {**TINY, "text_encoder": str(tiny_bert), **more}


class TestVQRec(ModelContract):
    model = "VQRec"
    more: ClassVar = {}

    @torch.no_grad()
    def test_items_of_one_code_tie_exactly(self, net, rows):
        scores, row_of_item = net.full_sort_predict(rows), net.row_of_item
        pairs = [
            pair
            for pair in itertools.combinations(range(1, len(row_of_item)), 2)
            if row_of_item[pair[0]] == row_of_item[pair[1]]
        ]
        for i, j in pairs:
            assert torch.equal(scores[:, i], scores[:, j])

    @torch.no_grad()
    def test_no_prefix_sees_its_future(self, net):
        items = torch.randn(3, 7, 16)
        whole = net.encoder(items)
        for end in range(1, 7):
            other = items.clone()
            other[:, end:] = torch.randn(3, 7 - end, 16)
            assert torch.equal(net.encoder(other)[:, :end], whole[:, :end])


class TestItsPretraining(TestVQRec):
    more: ClassVar = {"train_stage": "pretrain"}

    def test_loss_is_finite_and_falls(self, net, parts):
        net.begin_phase("pretrain", 12)
        super().test_loss_is_finite_and_falls(net, parts)


class TestMoreCentroidsThanItems(TestVQRec):
    more: ClassVar = {"code_values": 256}


class TestQuantiser:
    @pytest.fixture
    def vectors(self):
        generator = torch.Generator().manual_seed(4)
        mixed = torch.randn(12, 12, generator=generator)
        return torch.randn(300, 12, generator=generator) @ mixed

    def error(self, quantiser, vectors):
        codes = quantiser.encode(vectors)
        parts = [quantiser.centroids[d][codes[:, d]] for d in range(codes.shape[1])]
        return float((vectors @ quantiser.rotation - torch.cat(parts, 1)).square().mean())

    def test_a_code_names_the_nearest_centroid_of_each_part(self, vectors):
        quantiser = ProductQuantiser.fit(vectors, 3, 16)
        codes = quantiser.encode(vectors)
        for row in range(0, 300, 37):
            rotated = vectors[row] @ quantiser.rotation
            for digit in range(3):
                part = rotated[4 * digit : 4 * digit + 4]
                gaps = [float((part - centroid).norm()) for centroid in quantiser.centroids[digit]]
                assert gaps[codes[row, digit]] == pytest.approx(min(gaps), abs=1e-4)

    def test_the_rotation_is_one_and_pays(self, vectors):
        optimised = ProductQuantiser.fit(vectors, 3, 16)
        turn = optimised.rotation @ optimised.rotation.T
        torch.testing.assert_close(turn, torch.eye(12), atol=1e-5, rtol=0)
        books = [ProductQuantiser.fit(part, 1, 16) for part in vectors.split(4, dim=1)]
        unrotated = sum(self.error(b, p) for b, p in zip(books, vectors.split(4, 1), strict=True))
        assert self.error(optimised, vectors) < 0.95 * unrotated / 3

    def test_procrustes_is_the_best_rotation(self):
        generator = np.random.default_rng(0)
        points, turn = (
            generator.normal(size=(40, 3)),
            np.linalg.qr(generator.normal(size=(3, 3)))[0],
        )
        np.testing.assert_allclose(procrustes(points, points @ turn), turn, atol=1e-10)
        targets = generator.normal(size=(40, 3))
        best = np.square(points @ procrustes(points, targets) - targets).sum()
        for _ in range(50):
            other = np.linalg.qr(generator.normal(size=(3, 3)))[0]
            assert best <= np.square(points @ other - targets).sum()

    def test_it_is_the_same_every_time(self, vectors):
        one, two = (ProductQuantiser.fit(vectors, 3, 16) for _ in range(2))
        assert torch.equal(one.rotation, two.rotation)
        assert torch.equal(one.centroids, two.centroids)

    def test_fewer_vectors_than_centroids_are_kept_apart(self):
        vectors = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
        quantiser = ProductQuantiser.fit(vectors, 3, 16)
        assert quantiser.centroids.shape == (3, 16, 4)
        codes = quantiser.encode(vectors)
        assert codes.max() < 5 and len(torch.unique(codes, dim=0)) == 5
        assert self.error(quantiser, vectors) < 1e-8
        assert ProductQuantiser.fit(vectors[:1], 3, 16).encode(vectors[:1]).tolist() == [[0] * 3]

    def test_digits_must_divide_the_width(self, vectors):
        with pytest.raises(ValueError, match="code_digits=5 does not divide the 12 dimensions"):
            ProductQuantiser.fit(vectors, 5, 16)

    def test_it_is_cached_and_made_again_when_damaged(self, vectors, tmp_path, monkeypatch, caplog):
        first = ProductQuantiser.cached(vectors, 3, 16, "key", tmp_path)
        (file,) = tmp_path.glob("codebooks-*")
        with monkeypatch.context() as patch:
            patch.delattr(ProductQuantiser, "fit")
            hit = ProductQuantiser.cached(vectors, 3, 16, "key", tmp_path)
        assert torch.equal(hit.centroids, first.centroids)
        assert torch.equal(hit.rotation, first.rotation)
        file.write_bytes(file.read_bytes()[:-5])
        again = ProductQuantiser.cached(vectors, 3, 16, "key", tmp_path)
        assert torch.equal(again.centroids, first.centroids)
        assert "codebooks cache" in caplog.text


def test_an_item_is_the_mean_of_its_codes_embeddings():
    table, codes = torch.randn(4, 8, 5), torch.randint(0, 8, (6, 4))
    got = mean_of_codes(table, codes)
    for row in range(6):
        slow = sum(table[digit][codes[row][digit]] for digit in range(4)) / 4
        torch.testing.assert_close(got[row], slow)


def test_half_synthetic_codes_replace_a_share_of_the_digits():
    codes = torch.full((2000, 8), 3)
    keys = torch.arange(2000) * 7919
    mixed = replaced_digits(codes, 16, 0.75, keys)
    assert mixed.min() >= 0 and mixed.max() < 16
    changed = (mixed != 3).float().mean().item()
    assert changed == pytest.approx(0.75 * 15 / 16, abs=0.01)
    counts = torch.bincount(mixed[mixed != 3], minlength=16).float()
    assert counts[[i for i in range(16) if i != 3]].min() > 0.85 * changed * 16000 / 15
    assert torch.equal(mixed[5:9], replaced_digits(codes[5:9], 16, 0.75, keys[5:9]))
    assert torch.equal(replaced_digits(codes, 16, 0.0, keys), codes)


def test_sinkhorn_s_rows_and_columns_sum_to_one():
    matrices = sinkhorn(torch.randn(3, 6, 6), 100)
    assert matrices.min() >= 0
    for matrix in matrices:
        for line in (*matrix, *matrix.T):
            assert sum(line.tolist()) == pytest.approx(1.0, abs=1e-4)
    once = sinkhorn(torch.zeros(2, 2) + torch.tensor([[0.0, 1.0], [2.0, 5.0]]), 1)
    entries = [[1 / (1 + math.e), math.e / (1 + math.e)], [1 / (1 + math.e**3), 0.0]]
    entries[1][1] = 1 - entries[1][0]
    for row, column in itertools.product(range(2), range(2)):
        total = entries[0][column] + entries[1][column]
        assert once[row, column].item() == pytest.approx(entries[row][column] / total, abs=1e-5)


def test_a_permutation_gives_each_code_the_embedding_of_another():
    permutation, table = CodePermutation(3, 5, 20), torch.randn(3, 5, 4)
    orders = [torch.randperm(5) for _ in range(3)]
    with torch.no_grad():
        for digit, order in enumerate(orders):
            permutation.logits[digit] = 50.0 * nn.functional.one_hot(order, 5)
        moved = permutation(table)
    codes = torch.randint(0, 5, (7, 3))
    renamed = torch.stack([orders[digit][codes[:, digit]] for digit in range(3)], dim=1)
    torch.testing.assert_close(mean_of_codes(moved, codes), mean_of_codes(table, renamed))


def test_codebooks_can_be_learnt_from_the_items_that_are_trained_on(made):
    few = {"user_inter_num_interval": "[3,5]"}
    model, data = made(codebook_items="training", **few)
    histories = data.histories
    trained = set()
    for user in range(1, len(histories.lengths)):
        items = histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist()
        trained.update(items[:-2] if len(items) >= 3 else items)
    assert 0 < len(trained) < data.item_num - 1
    rows = torch.tensor(sorted({int(model.text.row_of_item[item]) for item in trained}))
    slow = ProductQuantiser.fit(model.text.table[rows], model.digits, model.values)
    assert torch.equal(model.quantiser.centroids, slow.centroids)
    assert not torch.equal(made(**few)[0].quantiser.centroids, slow.centroids)


@pytest.fixture
def made(tiny_bert, tmp_path):  # noqa: F811
    def make(name="toy", **settings):
        given = {**SMALL, **TINY, "text_encoder": str(tiny_bert), "cache_dir": str(tmp_path)}
        config = Config("VQRec", name, config_dict={**given, **settings})
        parts = find_dataset(config.model_class)(config).build()
        torch.manual_seed(3)
        return config.model_class(config, parts[0]), parts[0]

    return make


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def test_every_position_and_epoch_has_a_synthetic_code_of_its_own(made, monkeypatch):
    from recbole_jepa4rec.model import vqrec

    model, data = made(code_replacement_ratio=1.0, code_values=256)
    model.eval().begin_phase("pretrain", 1)
    rows = data.inter_feat[0:30]
    ends = list(zip(rows["user_id"].tolist(), rows["item_id"].tolist(), strict=True))
    batch = data.join(rows[[ends.index(end) for end in sorted(set(ends))]])
    drawn = []

    def remember(*args):
        drawn.append(replaced_digits(*args))
        return drawn[-1]

    monkeypatch.setattr(vqrec, "replaced_digits", remember)
    for epoch in range(2):
        model.begin_epoch(epoch)
        model.calculate_loss(batch)
    codes = torch.cat(drawn)
    assert len(codes) == 2 * int(batch["item_length"].sum()) > 2 * len(batch)
    assert len(torch.unique(codes, dim=0)) == len(codes)


def test_pretraining_contrasts_with_the_batch_and_a_half_synthetic_code(made, monkeypatch):
    from recbole_jepa4rec.model import vqrec

    model, data = made()
    model.eval().begin_phase("pretrain", 1)
    batch = data.join(data.inter_feat[0:9])
    synthetic = []

    def remember(codes, *args):
        synthetic.append((codes, replaced_digits(codes, *args)))
        return synthetic[-1][1]

    monkeypatch.setattr(vqrec, "replaced_digits", remember)
    loss = model.calculate_loss(batch)[0].item()
    ((real, fake),) = synthetic
    assert (real != fake).float().mean() > 0.5
    code = model.codes[model.row_of_item]

    def vector(digits):
        return sum(model.code_embedding[d, digits[d]] for d in range(4)) / 4

    windows = [
        [*items[:n].tolist(), target]
        for items, n, target in zip(
            batch["item_id_list"],
            batch["item_length"].tolist(),
            batch["item_id"].tolist(),
            strict=True,
        )
    ]
    wanted = [item for window in windows for item in window[1:]]
    candidates = {tuple(code[item].tolist()) for item in wanted}
    terms = []
    for window in windows:
        for end in range(1, len(window)):
            inputs = torch.stack([vector(code[item]) for item in window[:end]])
            s = model.encoder(inputs[None])[0, -1]
            truth = tuple(code[window[end]].tolist())
            assert tuple(real[len(terms)].tolist()) == truth
            below = sum(math.exp(cosine(s, vector(c)) / 0.07) for c in candidates)
            below += math.exp(cosine(s, vector(fake[len(terms)])) / 0.07)
            terms.append(-math.log(math.exp(cosine(s, vector(truth)) / 0.07) / below))
    assert loss == pytest.approx(np.mean(terms), abs=1e-4)


def test_synthetic_negatives_do_not_depend_on_the_batch(made):
    model, data = made()
    model.eval().begin_phase("pretrain", 1)
    rows = data.join(data.inter_feat[0:9])
    one = model.calculate_loss(rows)[0]
    assert torch.equal(one, model.calculate_loss(rows)[0])
    model.begin_epoch(5)
    assert not torch.equal(one, model.calculate_loss(rows)[0])


class TestPermutationPhase:
    def test_only_the_permutation_moves_and_it_stays_in_the_embeddings(self, made):
        model, data = made(train_stage="finetune")
        model.eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.begin_phase("permutation", 1)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained == ["permutation.logits"]
        model.calculate_loss(data.join(data.inter_feat[0:9]))[0].backward()
        assert model.permutation.logits.grad.abs().max() > 0
        state = model.state_dict()
        assert state.keys() == before.keys()
        mixed = sinkhorn(model.permutation.logits, 3).detach()
        slow = torch.stack([mixed[d] @ before["code_embedding"][d] for d in range(4)])
        torch.testing.assert_close(state["code_embedding"], slow)
        rows = data.inter_feat[0:5]
        with torch.no_grad():
            scores = model.full_sort_predict(rows)
            model.begin_phase("finetune", 1)
            torch.testing.assert_close(model.full_sort_predict(rows), scores)
        assert model.permutation is None
        assert all(p.requires_grad for p in model.parameters())
        torch.testing.assert_close(model.code_embedding.detach(), slow)

    def test_afterwards_the_sequence_encoder_can_stand_still(self, made):
        model, _ = made(fix_encoder=True)
        fixed = ("encoder.trm_encoder.", "encoder.position_embedding.")
        for phase, stands in (("pretrain", ()), ("permutation", ("",)), ("finetune", fixed)):
            model.begin_phase(phase, 1)
            for name, parameter in model.named_parameters():
                is_still = name.startswith(stands) and name != "permutation.logits"
                assert parameter.requires_grad != is_still, (phase, name)

    def test_loaded_weights_are_not_permuted_again(self, made):
        model, data = made(train_stage="finetune")
        model.eval().begin_phase("permutation", 1)
        rows = data.inter_feat[0:5]
        with torch.no_grad():
            scores = model.full_sort_predict(rows)
            model.load_state_dict(model.state_dict())
            torch.testing.assert_close(model.full_sort_predict(rows), scores)
        assert all(p.requires_grad for p in model.parameters())  # which the result counts


class TestTransfer:
    @pytest.fixture
    def train(self, tiny_bert, tmp_path):  # noqa: F811
        things = ("garden hose", "knife", "can", "spade")
        titles = [f"{color} {thing}" for color in ("red", "blue", "steel") for thing in things]
        write_data_sets(tmp_path / "data", one=titles[:9], two=titles[4:], three=titles[::-1][:10])
        common = {**SMALL, **TINY, "text_encoder": str(tiny_bert), "cache_dir": str(tmp_path)}

        def call(name, dataset, **settings):
            given = {**common, "data_path": str(tmp_path / "data"), **settings}
            folder = str(tmp_path / name)
            return folder, run("VQRec", dataset, config_dict={**given, "run_dir": folder})

        return call

    def stages(self, result):
        return [point["stage"] for point in result["learning_curve"]]

    def test_two_data_sets_pretrain_for_a_third(self, train):
        source, first = train("source", "one,two", train_stage="pretrain")
        assert self.stages(first) == ["pretrain"] and first["tokens_per_second"] is None
        target, result = train("target", "three", checkpoint=source)
        assert result["pretrain_datasets"] == ["one", "two"]
        assert self.stages(result) == ["permutation"] * 2 + ["finetune"] * 2
        model = recbole_jepa4rec.load(target)
        model.add_items({"new": {"title": "green garden hose"}})
        assert len(model.recommend([["i1", "new"]], k=99)) == 11

    def test_the_permutation_is_applied_once(self, train):
        """Nothing is learnt, so that going on from the best weights must change nothing."""
        source, _ = train("source", "one,two", train_stage="pretrain")
        _, result = train("target", "three", checkpoint=source, learning_rate=0.0)
        assert len(self.stages(result)) == 4
        assert len({point["valid"] for point in result["learning_curve"]}) == 1

    def test_another_catalogue_has_codes_of_its_own(self, train):
        source, _ = train("source", "one,two", train_stage="pretrain")
        target, _ = train("target", "three", checkpoint=source, epochs=0, permutation_epochs=0)
        old, new = (recbole_jepa4rec.load(folder).model for folder in (source, target))
        assert torch.equal(new.code_embedding, old.code_embedding)
        vectors = new.text.table[torch.unique(new.text.row_of_item[1:])]
        fresh = ProductQuantiser.fit(vectors, 4, 8)
        assert torch.equal(new.quantiser.rotation, fresh.rotation)
        assert torch.equal(new.quantiser.centroids, fresh.centroids)
        assert not torch.equal(new.quantiser.rotation, old.quantiser.rotation)
        assert not torch.equal(new.quantiser.centroids, old.quantiser.centroids)
        assert bytes(new.catalogue.tolist()).hex() == new.text.key != old.text.key

    def test_its_own_catalogue_needs_no_permutation(self, train):
        source, _ = train("source", "three", train_stage="pretrain")
        _, result = train("target", "three", checkpoint=source)
        assert self.stages(result) == ["finetune"] * 2

    def test_a_run_s_codes_come_with_its_weights(self, train, tmp_path):
        source, result = train("source", "three")
        before = recbole_jepa4rec.load(source)
        for file in tmp_path.glob("codebooks-*"):
            file.unlink()
        after = recbole_jepa4rec.load(source, seed=77)
        assert torch.equal(before.model.codes, after.model.codes)
        histories = [["i1", "i2"], ["i5"], []]
        one, two = (model.recommend(histories, k=5) for model in (before, after))
        assert one.equals(two)
        assert result["stage"] == "both"
