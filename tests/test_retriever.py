"""Which settings a retriever has that is trained for LlamaRec."""

import pytest

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.item_files import settle_attributes
from recbole_jepa4rec.runner.retriever import retriever_config


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "SHAN", "S3Rec", "GRU4Rec", "UniSRec"])
def test_a_retriever_trains_as_it_would_alone(model, toy):
    """RecBole's general defaults in the ranker's settings do not replace the retriever's own."""
    ranker = Config("LlamaRec", config_dict={**toy, "retriever": model, "seed": 7, "epochs": 2})
    alone = Config(model, config_dict={**toy, "seed": 7, "MAX_ITEM_LIST_LENGTH": 50})
    settle_attributes(alone)
    assert retriever_config(ranker).external() == alone.external()


def test_data_and_protocol_are_the_ranker_s(toy):
    given = {"user_inter_num_interval": "[3,inf)", "topk": [5], "valid_metric": "NDCG@5"}
    ranker = Config("LlamaRec", config_dict={**toy, **given, "retriever_settings": {"epochs": 4}})
    found = retriever_config(ranker)
    assert {key: found[key] for key in given} == given
    assert found["epochs"] == 4
