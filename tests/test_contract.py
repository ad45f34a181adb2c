"""The contract of every model, kept by ours and by RecBole's."""

from typing import ClassVar

import torch

from tests.contract import ModelContract


class TestPopularity(ModelContract):
    model = "Popularity"
    learns = False


class TestMarkov(ModelContract):
    model = "Markov"
    learns = False


class TestSASRec(ModelContract):
    model = "SASRec"
    settings: ClassVar = {"hidden_size": 16, "inner_size": 16, "loss_type": "CE"}


class TestGRU4Rec(ModelContract):
    model = "GRU4Rec"
    settings: ClassVar = {"embedding_size": 16, "hidden_size": 16, "loss_type": "CE"}


class TestJEPA4Rec(ModelContract):
    model = "JEPA4Rec"
    settings: ClassVar = {
        "hidden_size": 16,
        "num_layers": 1,
        "intermediate_size": 32,
        "vocab_size": 300,
        "pretrain_epochs": 1,
        "epochs": 1,
        "frozen_items_epochs": 1,
        "pretrain_batch_size": 32,
    }

    @torch.no_grad()
    def test_padding_changes_nothing(self, net, rows):
        """Longer windows of padding leave the packed tokens as they are."""
        before = net.full_sort_predict(rows)
        rows["item_id_list"] = torch.nn.functional.pad(rows["item_id_list"], (0, 7))
        assert torch.equal(before, net.full_sort_predict(rows))


class TestJEPA4RecInItsFirstPhase(TestJEPA4Rec):
    """The pre-training losses fall as well."""

    settings: ClassVar = {**TestJEPA4Rec.settings, "train_stage": "pretrain", "dropout": 0.0}

    def test_loss_is_finite_and_falls(self, net, parts):
        net.begin_phase("pretrain", 12)
        super().test_loss_is_finite_and_falls(net, parts)
