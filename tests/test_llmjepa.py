"""LLMJEPA against its formula, written slowly, and through its stages."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from recbole_jepa4rec import load
from recbole_jepa4rec.base.checkpoint import read_weights
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.language_encoder import encoder_from_nothing
from recbole_jepa4rec.model.llmjepa import LanguageModelJEPA, TwoViews
from recbole_jepa4rec.model.transformer import EncoderConfig
from recbole_jepa4rec.runner.quick_start import run
from tests.contract import SMALL, ModelContract, made
from tests.tiny_encoder import tiny_bert  # noqa: F401
from tests.tiny_jepa import KEYS, MAX_TOKENS, STEP, eight_users, tiny_sentences
from tests.tiny_llama import save_tiny_llama

needs_peft = pytest.mark.skipif(not find_spec("peft"), reason="the extra llm is not installed")

AIMS = {
    "temperature": 0.05,
    "items_per_step": 0,
    "next_token_weight": 1.0,
    "jepa_weight": 0.1,
    "jepa_distance": "cosine",
    "jepa_dropout": 0.0,
    "stop_gradient": False,
}
FROM_NOTHING = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "vocab_size": 300,
    "max_attribute_tokens": 8,
    "pretrain_epochs": 1,
    "epochs": 1,
    "pretrain_batch_size": 32,
}


class TestLLMJEPA(ModelContract):
    model = "LLMJEPA"
    settings: ClassVar = FROM_NOTHING


class TestItsFirstPhase(TestLLMJEPA):
    settings: ClassVar = {**FROM_NOTHING, "train_stage": "pretrain", "jepa_weight": 1.0}

    def test_loss_is_finite_and_falls(self, net, parts):
        net.begin_phase("pretrain", 12)
        super().test_loss_is_finite_and_falls(net, parts)


class TestAmongNegativesWithARankingHead(TestItsFirstPhase):
    settings: ClassVar = {
        **{**TestItsFirstPhase.settings, "jepa_distance": "infonce", "predictor_tokens": 2},
        **{"neighbour_prior": True, "next_token_weight": 0.0},
    }


@needs_peft
class TestALanguageModel(TestLLMJEPA):
    settings: ClassVar = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _settings(cls, tiny_llama):
        given = {"language_model": tiny_llama, "lora_r": 4, "learning_rate": 0.01}
        given |= {"max_attribute_tokens": 8, "MAX_ITEM_LIST_LENGTH": 4}
        cls.settings = {**given, "epochs": 1, "pretrain_batch_size": 32}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    text = Path("dataset/toy/toy.item").read_text(encoding="utf-8").split("\n")
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", text)


@pytest.fixture(scope="module")
def sentences():
    return tiny_sentences()


def tiny(sentences, predictor_tokens=1, **aims):
    """The same weights whenever it is called."""
    torch.manual_seed(11)
    shape = EncoderConfig(
        vocab_size=sentences.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        attention_window=None,
        training_targets="all_prefixes",
    )
    return LanguageModelJEPA(
        sentences=sentences,
        encoder=encoder_from_nothing(shape, predictor_tokens),
        objective=TwoViews(**{**AIMS, **aims}),
        max_sequence_tokens=MAX_TOKENS,
        tokens_per_batch=200,
    )


# --- both losses, one token at a time


def tokens_of(sentences, item):
    """An item's tokens and what ends it."""
    sentence = int(sentences.sentence_of_item[item])
    stored = sentences.input_ids[sentences.offsets[sentence] : sentences.offsets[sentence + 1]]
    return [*stored.tolist(), sentences.special.cls]


def states(model, tokens):
    """Hidden states of one text, by a plain transformer, ``[T, D]``; -k is the predictor's k-th."""
    words = model.encoder.language_model.get_input_embeddings().weight
    vectors = torch.stack([words[t] if t >= 0 else model.encoder.predictor[-t - 1] for t in tokens])
    layers = model.encoder.language_model.model
    return layers(inputs_embeds=vectors[None], use_cache=False).last_hidden_state[0]


def slow_losses(model, predictor_tokens):
    """Cross-entropies of next items' tokens; what histories predict, and which items came."""
    sentences, histories = model.sentences, eight_users()
    predictor = [-k for k in range(1, predictor_tokens + 1)]
    entropies, predicted, came = [], [], []
    first = 0
    for length, target in zip(histories.lengths.tolist(), histories.targets.tolist(), strict=True):
        items = [*histories.items[first : first + length].tolist(), target]
        first += length
        text: list[int] = []
        for before, item in enumerate(items):
            tokens = tokens_of(sentences, item)
            if before:
                predicted.append(states(model, text)[-1])
                came.append(item)
                hidden = states(model, [*text, *tokens])
                logits = hidden @ model.encoder.language_model.get_output_embeddings().weight.T
                for nth, token in enumerate(tokens):
                    entropies.append(-logits[len(text) + nth - 1].log_softmax(0)[token])
            text += [*tokens, *predictor]
    return torch.stack(entropies).mean(), torch.stack(predicted), came


def slow_distance(model, predicted, came, distance, stops):
    vectors = {item: states(model, tokens_of(model.sentences, item))[-1] for item in {*came}}
    if stops:
        vectors = {item: vector.detach() for item, vector in vectors.items()}
    total = torch.zeros(())
    for prediction, item in zip(predicted, came, strict=True):
        true = vectors[item]
        if distance == "cosine":
            total = total + 1 - prediction @ true / (prediction.norm() * true.norm())
        elif distance == "squared":
            total = total + sum((p - t) ** 2 for p, t in zip(prediction, true, strict=True)) / 16
        else:
            cosines = {
                item: prediction @ other / (prediction.norm() * other.norm()) / 0.05
                for item, other in vectors.items()
            }
            total = total + torch.stack([*cosines.values()]).logsumexp(0) - cosines[item]
    return total / len(came)


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize(
    ("distance", "predictor_tokens"), [("cosine", 0), ("cosine", 2), ("squared", 1), ("infonce", 1)]
)
def test_losses_and_gradients_equal_the_formula(
    sentences, distance, predictor_tokens, stop_gradient, monkeypatch
):
    monkeypatch.setattr("recbole_jepa4rec.model.language_encoder.TOKENS_AT_ONCE", 60)  # chunks
    aims = {"jepa_distance": distance, "stop_gradient": stop_gradient}
    model, slow = (tiny(sentences, predictor_tokens, **aims) for _ in range(2))
    found = model.pretrain_losses(eight_users(), KEYS, STEP)
    entropy, predicted, came = slow_losses(slow, predictor_tokens)
    expected = slow_distance(slow, predicted, came, distance, stop_gradient)
    torch.testing.assert_close(found["next_token"], entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["jepa"], expected, rtol=1e-4, atol=1e-5)
    found["jepa"].backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), slow.parameters(), strict=True):
        if ours.numel():
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_next_item_learns_unless_the_gradient_stops(sentences):
    """Of two items the second is read as a target alone, and has a word of its own."""
    histories = PackedHistories(*map(torch.tensor, ([1], [1], [0], [9])))
    own = [t for t in tokens_of(sentences, 9) if t not in tokens_of(sentences, 1)]
    assert own
    learnt = []
    for stops in (False, True):
        model = tiny(sentences, stop_gradient=stops, next_token_weight=0.0)
        model.pretrain_losses(histories, KEYS[:1], STEP)["jepa"].backward()
        gradient = model.encoder.language_model.get_input_embeddings().weight.grad
        learnt.append(float(gradient[own].abs().sum()))
    assert learnt[0] > 0 == learnt[1]


def test_terms_of_weight_zero_are_left_out(sentences):
    for key, left in (("next_token_weight", "jepa"), ("jepa_weight", "next_token")):
        model = tiny(sentences, **{key: 0.0})
        assert [*model.pretrain_losses(eight_users(), KEYS, STEP)] == [left]
        assert [*model.objective.loss_weights] == [left]


def test_a_share_of_the_steps_leaves_the_distance_out(sentences):
    model = tiny(sentences, jepa_dropout=0.6, next_token_weight=0.0)
    keys = [derive(3, step) for step in range(30)]
    with torch.no_grad():
        terms = [float(model.pretrain_losses(eight_users(), KEYS, key)["jepa"]) for key in keys]
        again = [float(model.pretrain_losses(eight_users(), KEYS, key)["jepa"]) for key in keys]
    assert terms == again
    assert 0.3 < terms.count(0.0) / len(terms) < 0.9
    assert len({*terms}) == 2


@torch.no_grad()
def test_a_history_reads_the_same_alone_and_an_item_without_predictor(sentences):
    model = tiny(sentences, 2).eval()
    histories = eight_users()
    together = model.encode_histories(histories)
    items = histories.items.split(histories.lengths.tolist())
    for row in range(8):
        text = [t for item in items[row].tolist() for t in (*tokens_of(sentences, item), -1, -2)]
        torch.testing.assert_close(together[row], states(model, text)[-1], rtol=1e-4, atol=1e-5)
    table = model.item_vectors()
    for item in (1, 5, 58):
        alone = states(model, tokens_of(sentences, item))[-1]
        torch.testing.assert_close(
            table[sentences.sentence_of_item[item]], alone, rtol=1e-4, atol=1e-5
        )


# --- a run, and what it leaves


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    given = {**SMALL, **FROM_NOTHING, "cache_dir": str(folder), "run_dir": str(folder / "run")}
    return Path(run("LLMJEPA", "toy", config_dict=given)["path"]).parent


def test_a_run_ranks_text_and_items_that_came_later(folder):
    recommender = load(folder)
    text = dict.fromkeys(recommender.item_text.columns, "red roses")
    assert len(recommender.recommend([[text, recommender.item_ids[3]]], k=4)) == 4
    recommender.add_items({"new": text})
    found = recommender.recommend([[text]], k=len(recommender.item_ids) - 1)
    assert "new" in found["item_id"].tolist()


def test_a_checkpoint_is_carried_to_other_data(folder, tmp_path):
    given = {**SMALL, "checkpoint": str(folder), "epochs": 0, "cache_dir": str(tmp_path)}
    result = run("LLMJEPA", "toy", config_dict={**given, "run_dir": str(tmp_path / "zero")})
    assert result["epochs"] == 0
    assert result["pretrain_datasets"] == ["toy"]
    with pytest.raises(ValueError, match="hidden_size=32 contradicts"):
        run("LLMJEPA", "toy", config_dict={**given, "hidden_size": 32})


def test_a_result_tells_what_the_vectors_are_like(folder):
    measured = json.loads((folder / "result.json").read_text())["vectors"]
    assert measured["effective_rank"] > 1 and measured["std"] > 0


def test_labels_tell_rows_apart(tmp_path):
    def label(**settings):
        given = {**SMALL, **FROM_NOTHING, "cache_dir": str(tmp_path), **settings}
        config = Config("LLMJEPA", "toy", config_dict=given)
        return made(config, find_dataset(config.model_class)(config).build()[0]).label

    assert label() == "LLMJEPA (from nothing, cosine 0.1, history bias)"
    assert label(jepa_weight=0, history_bias=False) == "LLMJEPA (from nothing, no JEPA term)"
    assert label(jepa_distance="infonce", jepa_weight=1.0, stop_gradient=True) == (
        "LLMJEPA (from nothing, infonce 1, stop-gradient, history bias)"
    )


# --- a language model that is given


@needs_peft
def test_low_rank_weights_alone_are_trained_and_kept(tiny_llama, tmp_path):
    given = {**SMALL, "language_model": tiny_llama, "lora_r": 4, "epochs": 1}
    given |= {"max_attribute_tokens": 8, "MAX_ITEM_LIST_LENGTH": 4, "pretrain_epochs": 0}
    given |= {"cache_dir": str(tmp_path), "run_dir": str(tmp_path / "run")}
    run("LLMJEPA", "toy", config_dict=given)
    kept, _ = read_weights(tmp_path / "run" / "model.safetensors")
    of_encoder = {name for name in kept if name.startswith("core.encoder.")}
    assert of_encoder
    assert all("lora_" in name or name == "core.encoder.predictor" for name in of_encoder)
    assert any(kept[name].abs().sum() > 0 for name in of_encoder if "lora_B" in name)
    assert not (tmp_path / "run" / "tokenizer.json").exists()


@needs_peft
def test_an_item_is_written_as_words_and_ended(tiny_llama):
    given = {**SMALL, "language_model": tiny_llama, "lora_r": 4}
    config = Config("LLMJEPA", "toy", config_dict=given)
    part = find_dataset(config.model_class)(config).build()[0]
    sentences = made(config, part).core.sentences
    written = sentences.tokenizer.decode(tokens_of(sentences, 3), skip_special_tokens=False)
    row = part.item_text.iloc[3]
    words = " ".join(f"{name} {value}" for name, value in row.items() if value)
    assert written == f" {words}</s>"


@needs_peft
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"language_model": "bert"},
            "language_model 'bert' cannot be used: it holds a BertModel; allowed: a causal "
            "language model, such as LlamaForCausalLM",
        ),
        (
            {"language_model": "llama", "max_sequence_tokens": 4090},
            "max_sequence_tokens leads to sequences of 4101 tokens, an item and the predictor's "
            "tokens included; language_model 'llama' reads 4096",
        ),
        (
            {"language_model": "llama", "hidden_size": 128},
            "hidden_size is 128; allowed with language_model='llama': 64",
        ),
        ({"language_model": "nowhere/at-all/here"}, "pretrained weights"),
        ({"lora_r": 8}, "lora_r is 8; allowed with language_model=None: 16"),
        (
            {"jepa_weight": 0, "next_token_weight": 0},
            "next_token_weight and jepa_weight are 0; allowed with pretrain_epochs: one above 0",
        ),
        ({"jepa_distance": "l1"}, "jepa_distance is 'l1'; allowed: cosine, squared, infonce"),
        ({"training_targets": "random"}, "training_targets is 'random'; allowed: all_prefixes"),
        ({"hidden_size": 18}, "hidden_size=18 is no multiple of 2 x num_heads=4"),
    ],
)
def test_bad_input_is_one_line(settings, words, tiny_llama, tiny_bert, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(tiny_llama, tmp_path / "llama")
    shutil.copytree(tiny_bert, tmp_path / "bert")
    shutil.copytree("dataset", tmp_path / "dataset")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        run("LLMJEPA", "toy", config_dict={**SMALL, "cache_dir": "cache", **settings})
    assert "\n" not in str(error.value)
