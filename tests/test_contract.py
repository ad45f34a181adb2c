"""The contract of every model, kept by ours and by RecBole's."""

from typing import ClassVar

import pytest
import torch

from recbole_jepa4rec.base.checkpoint import save_state
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from tests.contract import SMALL, ModelContract, training_batch


class TestPopularity(ModelContract):
    model = "Popularity"
    learns = False


class TestMarkov(ModelContract):
    model = "Markov"
    learns = False


class TestSTAR(ModelContract):
    model = "STAR"
    learns = False


class TestSASRec(ModelContract):
    model = "SASRec"
    settings: ClassVar = {"hidden_size": 16, "inner_size": 16, "loss_type": "CE"}


class TestGRU4Rec(ModelContract):
    model = "GRU4Rec"
    settings: ClassVar = {"embedding_size": 16, "hidden_size": 16, "loss_type": "CE"}


class TestSASRecByBPR(ModelContract):
    model = "SASRec-BPR"
    settings: ClassVar = {"hidden_size": 16, "inner_size": 16}

    def test_a_row_has_a_negative_that_is_not_its_target(self, parts):
        first, again = training_batch(parts[0]), training_batch(parts[0])
        negatives = first["neg_item_id"]
        assert negatives.shape == first["item_id"].shape
        assert not (negatives == first["item_id"]).any()
        assert 1 <= negatives.min() <= negatives.max() < parts[0].item_num
        assert not torch.equal(negatives, again["neg_item_id"])


class TestBERT4Rec(ModelContract):
    model = "BERT4Rec"
    settings: ClassVar = {"hidden_size": 16, "inner_size": 16}


class TestFDSA(ModelContract):
    model = "FDSA"
    settings: ClassVar = {"hidden_size": 16, "inner_size": 16}


class TestS3RecInPretraining(ModelContract):
    model = "S3Rec"
    settings: ClassVar = {
        "hidden_size": 16,
        "inner_size": 16,
        "train_stage": "pretrain",
        "pretrain_epochs": 1,
    }


class TestS3Rec(ModelContract):
    """Both stages where a run is made, else the second one, after a first that trained nothing."""

    model = "S3Rec"
    settings: ClassVar = {**TestS3RecInPretraining.settings, "train_stage": "both"}

    @pytest.fixture(scope="class")
    def config(self, tmp_path_factory):
        given = {**SMALL, **self.settings}
        first = Config(self.model, "toy", config_dict={**given, "train_stage": "pretrain"})
        parts = find_dataset(first.model_class)(first).build()
        file = tmp_path_factory.mktemp("first") / "pretrained.pt"
        save_state(file, {"state_dict": first.model_class(first, parts[0]).state_dict()})
        second = {"train_stage": "finetune", "pre_model_path": str(file)}
        return Config(self.model, "toy", config_dict={**given, **second})


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


class TestJEPA4RecWithARankingHead(TestJEPA4Rec):
    settings: ClassVar = {
        **TestJEPA4Rec.settings,
        **{"history_bias": True, "neighbour_prior": True, "item_id_residual": True},
    }


class TestJEPA4RecInItsFirstPhase(TestJEPA4Rec):
    """The pre-training losses fall as well."""

    settings: ClassVar = {**TestJEPA4Rec.settings, "train_stage": "pretrain", "dropout": 0.0}

    def test_loss_is_finite_and_falls(self, net, parts):
        net.begin_phase("pretrain", 12)
        super().test_loss_is_finite_and_falls(net, parts)
