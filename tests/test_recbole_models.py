"""RecBole's models made to do less: loss and gradient stay the same to the last digits."""

import copy
import random

import pytest
import torch
from recbole.data.utils import create_samplers, get_dataloader
from torch import nn

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import CAUSAL_MODELS, find_dataset, find_model
from recbole_jepa4rec.model import loss as loss_module
from recbole_jepa4rec.model.loss import softmax_loss
from recbole_jepa4rec.model.recbole_models import (
    BOUNDED,
    BY_LENGTH,
    AttributesByLength,
    BoundedSoftmax,
    SharedPass,
    of_like_length,
    sparing,
)
from recbole_jepa4rec.training.shared_pass import PrefixBatches
from tests.conftest import ROOT

ENOUGH = 1e-9
"""Relative difference that double precision leaves; single precision's own is 1e-7."""

SMALL = {
    "data_path": str(ROOT / "dataset"),
    "use_gpu": False,
    "hidden_size": 16,
    "embedding_size": 16,
    "inner_size": 16,
    "MAX_ITEM_LIST_LENGTH": 20,
}


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Numbers in double precision, those that RecBole makes on its way included."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "FloatTensor", torch.DoubleTensor)
    yield
    torch.set_default_dtype(torch.float32)


def settings_of(name, dataset="ml-100k", **settings):
    """A config, without the settings that the model does not have."""
    every = {**SMALL, **settings}
    if find_model(name).__name__ in ("GRU4Rec", "GRU4RecF", "NARM"):
        del every["inner_size"]
    return Config(name, dataset, config_dict=every)


def loader_of(config, users):
    """RecBole's loader of these users' training rows, unshuffled, in one batch."""
    parts = find_dataset(config.model_class)(config).build()
    rows = parts[0].inter_feat
    kept = torch.isin(rows.histories.users[rows.target], torch.tensor(users))
    parts[0].inter_feat = rows.with_targets(rows.target[kept])
    sampler = create_samplers(config, parts[0], [parts[0]] * 3)[0]
    return get_dataloader(config, "train")(config, parts[0], sampler, shuffle=False)


def both(config, dataset, targets):
    """RecBole's model and ours with the same weights, without dropout."""
    stage, loss = config["train_stage"], config["loss_type"]
    found = []
    for model_class in (
        config.model_class,
        sparing(config.model_class, targets, loss, stage),
    ):
        torch.manual_seed(5)
        net = model_class(config, dataset).train()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        found.append(net)
    theirs, ours = found
    assert type(ours).__name__ == type(theirs).__name__ and type(ours) is not type(theirs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same(theirs, loss, ours, other):
    """Losses and the gradients of every weight, by their relative difference."""
    loss.backward()
    other.backward()
    exact = loss.dtype == torch.float64  # S3Rec's pre-training counts in single precision
    assert abs(loss - other) / abs(loss) < (ENOUGH if exact else 1e-6)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    whole = sum(each.norm() ** 2 for each in gradients.values() if each is not None).sqrt()
    for name, weight in ours.named_parameters():
        if gradients[name] is None:
            assert weight.grad is None, name
            continue
        size = max(gradients[name].norm(), 1e-8 * whole)  # a key's bias moves nothing
        assert (weight.grad - gradients[name]).norm() / size < ENOUGH, name


def history_lengths(dataset):
    return torch.bincount(dataset.inter_feat.histories.users[dataset.inter_feat.target])


CPU, GPU = torch.device("cpu"), torch.device("cuda")  # by name alone

SHORT_AND_LONG = [19, 41, 102, 405]
"""Users of ml-100k with 20 to 737 interactions."""


class TestSharedPass:
    @pytest.mark.parametrize("loss_type", ["CE", "BPR"])
    @pytest.mark.parametrize("name", [name for name in CAUSAL_MODELS if name != "S3Rec"])
    def test_loss_and_gradient_are_those_of_rows(self, name, loss_type):
        config = settings_of(name, loss_type=loss_type, train_batch_size=10_000)
        users = SHORT_AND_LONG if "F" not in name else SHORT_AND_LONG[:3]
        loader = loader_of(config, users)
        theirs, ours = both(config, loader._dataset, "all_prefixes")
        (batch,) = PrefixBatches(loader, CPU)
        rows = loader._dataset.inter_feat[:]
        assert len(batch) == len(rows) and history_lengths(loader._dataset).max() > 20
        if loss_type == "BPR":  # the same negative for the same target
            negative = torch.randint(1, theirs.n_items, (theirs.n_items,))
            rows.interaction["neg_item_id"] = negative[rows["item_id"]]
            for group in batch.groups:
                assert group.columns["neg_item_id"].shape == group.columns["item_id"].shape
                group.columns["neg_item_id"] = negative[group.columns["item_id"]]
        assert_same(theirs, theirs.calculate_loss(rows), ours, ours.loss_of_prefixes(batch))

    @pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
    def test_a_gpu_reads_all_windows_at_once(self, name):
        loader = loader_of(settings_of(name, "toy", loss_type="CE"), [*range(1, 20)])
        theirs, ours = both(
            settings_of(name, "toy", loss_type="CE"), loader._dataset, "all_prefixes"
        )
        groups, at_once = (next(iter(PrefixBatches(loader, each))) for each in (CPU, GPU))
        assert len(groups.groups) > len(at_once.groups) == 1
        rows = loader._dataset.inter_feat[:]
        for batch in (groups, at_once):
            assert_same(theirs, theirs.calculate_loss(rows), ours, ours.loss_of_prefixes(batch))

    @pytest.mark.parametrize("loss_type", ["CE", "BPR"])
    def test_s3rec_finetunes_so_too(self, loss_type, tmp_path):
        first = settings_of("S3Rec", train_stage="pretrain")
        loader = loader_of(first, SHORT_AND_LONG[:3])
        file = tmp_path / "pretrained.pt"
        weights = first.model_class(first, loader._dataset).state_dict()
        torch.save({"state_dict": weights}, file)
        config = settings_of(
            "S3Rec",
            train_stage="finetune",
            pre_model_path=str(file),
            loss_type=loss_type,
            train_batch_size=10_000,
        )
        loader = loader_of(config, SHORT_AND_LONG[:3])
        theirs, ours = both(config, loader._dataset, "all_prefixes")
        (batch,) = PrefixBatches(loader, CPU)
        rows = loader._dataset.inter_feat[:]
        if loss_type == "BPR":
            negative = torch.randint(1, theirs.n_items - 1, (theirs.n_items,))
            rows.interaction["neg_item_id"] = negative[rows["item_id"]]
            for group in batch.groups:
                group.columns["neg_item_id"] = negative[group.columns["item_id"]]
        assert_same(theirs, theirs.calculate_loss(rows), ours, ours.loss_of_prefixes(batch))

    def test_rows_are_still_read_as_rows(self):
        config = settings_of("SASRec", "toy")
        loader = loader_of(config, [*range(1, 20)])
        theirs, ours = both(config, loader._dataset, "all_prefixes")
        rows = loader._dataset.inter_feat[:]
        assert_same(theirs, theirs.calculate_loss(rows), ours, ours.calculate_loss(rows))
        assert torch.equal(theirs.full_sort_predict(rows), ours.full_sort_predict(rows))

    def test_several_negatives_of_a_target_count_as_recbole_counts_them(self):
        config = settings_of(
            "SASRec",
            "toy",
            loss_type="BPR",
            train_neg_sample_args={"distribution": "uniform", "sample_num": 3, "dynamic": False},
        )
        loader = loader_of(config, [*range(1, 20)])
        theirs, ours = both(config, loader._dataset, "all_prefixes")
        (batch,) = PrefixBatches(loader, CPU)
        rows = loader._dataset.inter_feat[:].repeat(3)
        assert len(batch) == len(rows)
        negative = torch.randint(1, theirs.n_items, (theirs.n_items,))
        rows.interaction["neg_item_id"] = negative[rows["item_id"]]
        for group in batch.groups:
            group.columns["neg_item_id"] = negative[group.columns["item_id"]]
        assert_same(theirs, theirs.calculate_loss(rows), ours, ours.loss_of_prefixes(batch))


class TestRowsByLength:
    @pytest.mark.parametrize("loss_type", ["CE", "BPR"])
    @pytest.mark.parametrize("name", BY_LENGTH)
    def test_loss_and_gradient_are_those_of_all_columns(self, name, loss_type):
        if (name, loss_type) == ("CORE", "BPR"):
            pytest.skip("has one loss")
        config = settings_of(name, loss_type=loss_type)
        loader = loader_of(config, [19, 405])
        theirs, ours = both(config, loader._dataset, "rows")
        rows = loader.collate_fn(torch.arange(0, len(loader._dataset), 4))
        assert rows[theirs.ITEM_SEQ_LEN].unique().tolist() > [1, 3]
        pair = [net.calculate_loss(copy.deepcopy(rows)) for net in (theirs, ours)]
        assert_same(theirs, pair[0], ours, pair[1])

    def test_bert4rec_s_rows_are_ranked_as_before(self):
        config = settings_of("BERT4Rec")
        loader = loader_of(config, [19, 405])
        theirs, ours = both(config, loader._dataset, "rows")
        rows = loader._dataset.inter_feat[:]
        columns = rows[theirs.ITEM_SEQ], rows[theirs.ITEM_SEQ_LEN]
        made = [net.reconstruct_test_data(*columns) for net in (theirs, ours)]
        assert torch.equal(*made) and columns[1].max() == 20
        with torch.no_grad():
            scores = [net.eval().full_sort_predict(rows) for net in (theirs, ours)]
        assert torch.equal(*scores)

    def test_a_row_without_a_mask_that_counts_has_no_part_in_the_loss(self):
        config = settings_of("BERT4Rec", "toy", mask_ratio=0.1)
        loader = loader_of(config, [*range(1, 20)])
        theirs, ours = both(config, loader._dataset, "rows")
        random.seed(2)
        rows = loader.collate_fn(torch.arange(24))
        counted = (rows[theirs.MASK_INDEX] > 0).any(dim=1)
        assert counted.any() and not counted.all()
        pair = [net.calculate_loss(copy.deepcopy(rows)) for net in (theirs, ours)]
        assert_same(theirs, pair[0], ours, pair[1])

    def test_groups_have_each_row_once_and_little_padding(self):
        lengths = torch.tensor([5, 1, 50, 2, 9, 1, 11, 10])
        (all_of_them,) = of_like_length(lengths, GPU)
        assert torch.equal(all_of_them, lengths.argsort(stable=True))
        groups = [*of_like_length(lengths, CPU)]
        assert sorted(torch.cat(groups).tolist()) == [*range(8)]
        for rows in groups:
            assert lengths[rows].max() == lengths[rows[-1]] <= 2 * lengths[rows].min()


class TestPretraining:
    @pytest.mark.parametrize("attribute", ["class", "release_year"])
    def test_s3rec_draws_and_loses_the_same(self, attribute):
        config = settings_of("S3Rec", train_stage="pretrain", item_attribute=attribute)
        loader = loader_of(config, [19, 102])
        theirs, ours = both(config, loader._dataset, "rows")
        assert isinstance(ours, AttributesByLength)
        rows = loader._dataset.inter_feat[:]
        columns = rows[theirs.ITEM_SEQ][:14], rows[theirs.ITEM_SEQ_LEN][:14]
        drawn = []
        for net in (theirs, ours):
            random.seed(3)
            drawn.append(net.reconstruct_pretrain_data(*columns))
        for long, short in zip(*drawn, strict=True):
            width = short.shape[1]
            assert torch.equal(long[:, -width:], short.long()) and not long[:, :-width].any()
        pair = []
        for net in (theirs, ours):
            random.seed(3)
            pair.append(net.calculate_loss(rows))
        assert_same(theirs, pair[0], ours, pair[1])
        assert torch.equal(theirs.full_sort_predict(rows), ours.full_sort_predict(rows))


class TestSoftmax:
    @pytest.mark.parametrize("name", sorted({*BOUNDED} - {*BY_LENGTH, *CAUSAL_MODELS}))
    def test_losses_with_bounded_memory_are_the_model_s(self, name):
        config = settings_of(name, "toy", loss_type="CE", MAX_ITEM_LIST_LENGTH=10)
        loader = loader_of(config, [*range(1, 20)])
        theirs, ours = both(config, loader._dataset, "rows")
        assert isinstance(ours, BoundedSoftmax)
        rows = loader.collate_fn(torch.arange(30))
        pair = [net.calculate_loss(copy.deepcopy(rows)) for net in (theirs, ours)]
        assert_same(theirs, pair[0], ours, pair[1])
        rows = loader._dataset.inter_feat[:5]
        with torch.no_grad():
            scores = [net.eval().full_sort_predict(copy.deepcopy(rows)) for net in (theirs, ours)]
        assert torch.equal(*scores)

    @pytest.mark.parametrize("limit", ["FUSED_LOGITS", "FUSED_ITEMS"])
    def test_chunks_say_what_all_logits_say(self, limit, monkeypatch):
        monkeypatch.setattr(loss_module, limit, 0)
        monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 100)
        torch.manual_seed(1)
        tables = [torch.randn(rows, 6) for rows in (37, 53)]
        positive = torch.randint(53, (37,))
        pair = []
        for loss_of in (softmax_loss, lambda x, y, z: nn.functional.cross_entropy(x @ y.T, z)):
            sequences, items = (table.clone().requires_grad_() for table in tables)
            loss = loss_of(sequences, items, positive)
            (3 * loss).backward()
            pair.append((loss.detach(), sequences.grad, items.grad))
        torch.testing.assert_close(*pair)

    def test_the_scores_of_all_rows_are_never_held(self, monkeypatch):
        config = settings_of("SASRec", "toy", loss_type="CE")
        loader = loader_of(config, [*range(1, 20)])
        _, ours = both(config, loader._dataset, "all_prefixes")
        monkeypatch.setattr(loss_module, "FUSED_LOGITS", 16 * ours.n_items)
        (batch,) = PrefixBatches(loader, CPU)
        held = []

        def watch(tensor):
            held.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(watch, lambda tensor: tensor):
            ours.loss_of_prefixes(batch)
        assert held and all(ours.n_items not in shape[1:] for shape in held)


def test_models_that_nothing_is_known_of_stay_as_they_are():
    for name in ("RepeatNet", "SASRecCPR", "FPMC", "TransRec", "DIN"):
        model_class = find_model(name)
        assert sparing(model_class, "rows", None, None) is model_class
    sasrec = find_model("SASRec")
    own = type("SASRec", (sasrec,), {"__module__": "users.own"})
    assert sparing(own, "all_prefixes", "CE", None) is own
    made = sparing(sasrec, "all_prefixes", "BPR", None)
    assert issubclass(made, SharedPass) and not issubclass(made, BoundedSoftmax)
    assert made is sparing(sasrec, "all_prefixes", "BPR", None)
