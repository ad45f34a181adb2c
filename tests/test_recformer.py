"""RecFormer: its contract, its losses written slowly, and the names of its published weights."""

from typing import ClassVar

import pytest
import torch
import transformers

from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.config.sentence_settings import RecFormerSettings
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.jepa4rec import RecFormer
from recbole_jepa4rec.model.moving_average import FixedCopy
from recbole_jepa4rec.model.objective import Objective
from recbole_jepa4rec.model.transformer import MLMHead
from recbole_jepa4rec.text.masking import mask_tokens
from recbole_jepa4rec.text.tokenizer import save_tokenizer, train_wordpiece
from tests.contract import SMALL, ModelContract
from tests.test_claims import histories, sentences  # noqa: F401 (fixtures)
from tests.test_weights import recformer
from tests.tiny_jepa import KEYS, STEP, tiny_jepa

TINY = {
    "hidden_size": 16,
    "num_layers": 1,
    "intermediate_size": 32,
    "vocab_size": 300,
    "pretrain_epochs": 1,
    "epochs": 1,
    "frozen_items_epochs": 1,
    "pretrain_batch_size": 32,
}


class TestRecFormer(ModelContract):
    model = "RecFormer"
    settings: ClassVar = TINY

    def test_it_has_neither_predictor_nor_target_encoder_nor_mapping_loss(self, net):
        net.begin_phase("pretrain", 12)
        assert net.loss_weights == {"sequence_item": 1.0, "mlm": 0.1}
        assert not [name for name, _ in net.named_modules() if "predictor" in name]
        copied = net.core.target_encoder.state_dict()
        with torch.no_grad():
            for parameter in net.core.encoder.parameters():
                parameter.add_(1.0)
        net.weights_moved()  # nothing follows the encoder
        after = net.core.target_encoder.state_dict()
        assert all(torch.equal(copied[name], after[name]) for name in copied)


class TestRecFormerInItsFirstPhase(TestRecFormer):
    settings: ClassVar = {**TINY, "train_stage": "pretrain"}

    def test_loss_is_finite_and_falls(self, net, parts):
        net.begin_phase("pretrain", 12)
        super().test_loss_is_finite_and_falls(net, parts)


@pytest.fixture
def model(sentences):  # noqa: F811
    encoder = tiny_jepa(sentences).encoder
    aims = Objective.of(RecFormerSettings(items_per_step=0))
    head = MLMHead(encoder.config)
    return JointEmbeddingModel(sentences, encoder, FixedCopy(encoder), head, None, aims, 256, 200)


def test_pretraining_losses_equal_slow_loops_over_users(model, sentences, histories):  # noqa: F811
    """L_IIC over the items of the batch, each once; L_MLM over every masked token's label."""
    item_ids, lengths, next_items = histories.newest_first(), histories.lengths, histories.targets
    losses = model.pretrain_losses(histories, KEYS)

    def cosine(a, b):
        return (a @ b) / (a.norm() * b.norm())

    def alone(item):
        return sentences.single(sentences.sentence_of_item[torch.tensor([item])])

    candidates = sorted(set(next_items.tolist()))
    vectors = {item: model.encoder(alone(item))[0] for item in candidates}
    contrastive, mlm = [], []
    start = 0
    for user, length in enumerate(lengths.tolist()):
        items, key = item_ids[start : start + length], KEYS[user : user + 1]
        start += length
        clean = sentences.histories(items, torch.tensor([length]), 256)
        h_s = model.encoder(clean)[0]
        logits = {item: cosine(h_s, vectors[item]) / 0.05 for item in candidates}
        share = logits[next_items[user].item()].exp() / sum(x.exp() for x in logits.values())
        contrastive.append(-share.log())
        for batch, purpose in (
            (clean, Draw.HISTORY_MASK),
            (alone(next_items[user].item()), Draw.NEXT_ITEM_MASK),
        ):
            ordinary, mask = model.masking.ordinary_ids, sentences.special.mask
            seen, chosen = mask_tokens(batch, 0.15, derive(key, purpose), mask, ordinary)
            states = model.encoder(seen)
            for token in chosen.nonzero()[:, 0].tolist():
                asked = model.mlm_head.asked(states[token : token + 1])
                of_tokens = asked @ model.encoder.embedding.tokens.weight.T + model.mlm_head.bias
                mlm.append(-of_tokens.log_softmax(1)[0, batch.input_ids[token]])
    assert len(mlm) > 5
    expected = torch.stack(contrastive).mean()
    assert losses["sequence_item"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["mlm"].item() == pytest.approx(torch.stack(mlm).mean().item(), rel=1e-4)


def test_frozen_items_are_those_of_the_first_finetuning_stage(model, histories):  # noqa: F811
    """Algorithm 1: the second stage keeps the item matrix and moves the rest of the model."""
    model.begin_phase(10, items_frozen=False)
    before = model.item_vectors().clone()
    model.begin_phase(10, items_frozen=True)
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.5)
    model.finetune_losses(histories, KEYS, STEP)["finetune"].backward()
    optimizer.step()
    model.weights_moved()
    assert torch.equal(model.item_vectors(), before)
    assert not torch.equal(model.item_table.encode(model.encoder, range(5)), before[:5])


@pytest.mark.parametrize("freezes", [False, True])
def test_word_embeddings_can_stand_still_in_pretraining_alone(freezes):
    settings = {**SMALL, **TINY, "freeze_word_embeddings": freezes}
    config = Config("RecFormer", "toy", config_dict=settings)
    dataset = find_dataset(RecFormer)(config)
    dataset.build()
    net = RecFormer(config, dataset)
    users = torch.tensor([1, 2])
    batch = dataset.histories.packed(dataset.histories.train_end[users] - 1, 10)
    words = net.core.encoder.embedding.tokens.weight
    for phase in ("pretrain", "finetune"):
        net.begin_phase(phase, 1)
        net.begin_epoch(1)
        sum(net.losses(batch)).backward()
        assert (words.grad is None) == (freezes and phase == "pretrain")
        assert net.core.encoder.embedding.norm.weight.grad is not None
        net.zero_grad(set_to_none=True)


def test_published_names_start_a_run(tmp_path):
    torch.save(recformer(tmp_path), tmp_path / "recformer.bin")
    words = [f"word{i % 5}" for i in range(50)]
    save_tokenizer(train_wordpiece(words, 60), tmp_path / "tokenizer.json")
    config = Config(
        "RecFormer",
        "toy",
        config_dict={
            **SMALL,
            "encoder_checkpoint": str(tmp_path / "recformer.bin"),
            "training_targets": "random",
            "attention_window": 8,
            "max_sequence_tokens": 64,
            "cache_dir": str(tmp_path),
        },
    )
    train = find_dataset(config.model_class)(config).build()[0]
    net = RecFormer(config, train)
    published = torch.load(tmp_path / "recformer.bin", weights_only=True)
    assert torch.equal(
        net.core.encoder.embedding.tokens.weight,
        published["longformer.embeddings.word_embeddings.weight"],
    )
    assert isinstance(net.core.encoder, SentenceEncoder)
    assert transformers.LongformerConfig.from_pretrained(tmp_path).hidden_size == 24
