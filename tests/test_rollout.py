"""Rollouts: a step of training written slowly, their layout, recommendations, and the drift."""

import re
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from recbole_jepa4rec.base.keyed_random import Draw, below, derive
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings
from recbole_jepa4rec.convert.command_line import main as convert
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.evaluation.drift import WAYS
from recbole_jepa4rec.model.rollout import PROJECTIONS, pulled_back
from recbole_jepa4rec.runner.quick_start import main, run
from recbole_jepa4rec.runner.recommender import load
from recbole_jepa4rec.text.token_batch import TokenBatch
from tests.conftest import ROOT
from tests.contract import SMALL, ModelContract
from tests.tiny_jepa import KEYS, STEP, eight_users, tiny_jepa, tiny_sentences

TINY = {"hidden_size": 16, "num_layers": 1, "intermediate_size": 16, "vocab_size": 300}
SPLIT = {"benchmark_filename": ["train", "valid", "test"]}


@pytest.fixture(scope="module")
def sentences():
    return tiny_sentences()


def by_hand(model, items, latents):
    """h_CLS of a history behind which latents stand, laid out token by token, ``[D]``.

    A latent is the embedding of a word that the history has not.
    """
    store, special = model.sentences, model.sentences.special
    words = sorted({*special.all} - {special.cls})[: len(latents)]
    parts = []
    for item in items:
        one = store.single(store.sentence_of_item[torch.tensor([item])])
        parts.append((one.input_ids.tolist()[1:], one.token_types.tolist()[1:]))
    causal = model.encoder.config.training_targets == "all_prefixes"
    if causal:
        parts = [([*tokens, special.cls], [*kinds, 0]) for tokens, kinds in parts]
    parts += [([word], [0 if causal else 2]) for word in words]
    ids, types, places, item_places = [], [], [], []
    if not causal:
        ids, types, places, item_places = [special.cls], [0], [0], [0]
    for number, (tokens, kinds) in enumerate(parts if causal else parts[::-1], start=1):
        ids += tokens
        types += kinds
        places += range(len(tokens)) if causal else range(len(places), len(ids))
        item_places += [number] * len(tokens)
    cls = torch.tensor([n for n, kind in enumerate(types) if kind == 0])
    columns = map(torch.tensor, (ids, types, places, item_places, [0, len(ids)]))
    batch = TokenBatch(*columns, cls, model.encoder.config.training_targets)
    weight = model.encoder.embedding.tokens.weight
    inputs = [model.reentry(F.normalize(latent, dim=0)) for latent in latents]
    if inputs:
        weight = weight.index_copy(0, torch.tensor(words), torch.stack(inputs))
    hidden = functional_call(model.encoder, {"embedding.tokens.weight": weight}, (batch,))
    return hidden[batch.whole_cls_index[0]]


def slow_rollout(model, histories, steps):
    """Vectors of later steps and the true next items, one history after the other."""
    vectors, wanted = [], []
    per_user = histories.items.split(histories.lengths.tolist())
    for number, (items, target) in enumerate(zip(per_user, histories.targets, strict=True)):
        if len(items) < 2:
            continue
        prefix = 1 + int(below(derive(KEYS[number], Draw.ROLLOUT), len(items) - 1))
        path = [*items.tolist(), int(target)]
        latents = [by_hand(model, path[:prefix], [])]
        for step in range(1, steps):
            if prefix + step >= len(path):
                break
            latents.append(by_hand(model, path[:prefix], latents))
            vectors.append(latents[-1])
            wanted.append(path[prefix + step])
    return torch.stack(vectors), torch.tensor(wanted)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("targets", ["random", "all_prefixes"])
class TestLoss:
    def compare(self, model, loss, candidates):
        vectors, wanted = slow_rollout(model, eight_users(), model.objective.rollout_steps)
        store = model.sentences
        table = model.encoder.cls(model._single(candidates))
        logits = torch.cosine_similarity(vectors[:, None], table[None], dim=-1) / 0.05
        right = torch.searchsorted(candidates, store.sentence_of_item[wanted])
        expected = F.cross_entropy(logits, right)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        weights = dict(model.named_parameters())
        kept = [w for n, w in weights.items() if n.startswith(("encoder.", "reentry."))]
        found = torch.autograd.grad(loss, kept, allow_unused=True, materialize_grads=True)
        slow = torch.autograd.grad(expected, kept, allow_unused=True, materialize_grads=True)
        for one, other in zip(found, slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert sum(float(gradient.abs().sum()) for gradient in slow) > 1

    def made(self, sentences, targets, steps, **aims):
        model = tiny_jepa(sentences, targets, 2, rollout_steps=steps, **aims)
        torch.nn.init.normal_(model.reentry.weight, std=0.3)
        torch.nn.init.normal_(model.encoder.embedding.item_positions.weight, std=0.2)
        return model

    def test_finetuning_is_a_softmax_over_all_items_at_each_step(self, sentences, targets, steps):
        model = self.made(sentences, targets, steps, items_per_step=1000)
        losses = model.finetune_losses(eight_users(), KEYS, STEP)
        self.compare(model, losses["rollout"], torch.arange(1, sentences.num_sentences))
        plain = tiny_jepa(sentences, targets, 2, items_per_step=1000)
        plain.encoder.load_state_dict(model.encoder.state_dict())
        one = plain.finetune_losses(eight_users(), KEYS, STEP)
        assert torch.equal(one["finetune"], losses["finetune"]) and set(one) == {"finetune"}

    def test_pretraining_contrasts_with_what_the_batch_wants(self, sentences, targets, steps):
        model = self.made(sentences, targets, steps)
        histories = eight_users()
        loss = model.pretrain_losses(histories, KEYS, STEP)["rollout"]
        _, wanted = slow_rollout(model, histories, steps)
        wanted = torch.cat([wanted, histories.targets])
        if targets == "all_prefixes":
            rows = histories.items.split(histories.lengths.tolist())
            wanted = torch.cat([wanted, *(row[1:] for row in rows)])
        self.compare(model, loss, torch.unique(sentences.sentence_of_item[wanted]))


@pytest.mark.parametrize("targets", ["random", "all_prefixes"])
def test_one_step_trains_as_if_there_were_no_rollouts(sentences, targets):
    found = []
    for aims in ({}, {"rollout_steps": 0}, {"rollout_steps": 1}):
        model = tiny_jepa(sentences, targets, items_per_step=20, **aims)
        assert model.reentry is None and "reentry.weight" not in model.state_dict()
        terms = model.pretrain_losses(eight_users(), KEYS, STEP)
        terms |= model.finetune_losses(eight_users(), KEYS, STEP)
        sum(terms.values()).backward()
        found.append({**terms, **{n: w.grad for n, w in model.named_parameters()}})
    for first, second in pairwise(found):
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor is second[name] is None or torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("targets", ["random", "all_prefixes"])
def test_latents_push_the_oldest_items_out_of_a_full_window(sentences, targets):
    model = tiny_jepa(sentences, targets, 2, rollout_steps=3)
    items = list(range(1, 22))
    latents = [torch.randn(1, 16), torch.randn(1, 16)]
    most = model.encoder.config.max_item_positions - 1
    found = model.encode_histories(PackedHistories.of_lists([items], most), latents)
    slow = by_hand(model, items[2 - most :], [latent[0] for latent in latents])
    if targets == "all_prefixes":  # the other way loses tokens of the oldest item as well
        torch.testing.assert_close(found[0], slow, atol=1e-5, rtol=1e-4)
    assert found.isfinite().all()


def test_nothing_of_latents_depends_on_how_many_are_read_at_once(sentences):
    model = tiny_jepa(sentences, "all_prefixes", 2, rollout_steps=3)
    latents = [torch.randn(8, 16), torch.randn(8, 16)]
    few = model.encode_histories(eight_users(), latents)
    model.tokens_per_batch = 10_000
    torch.testing.assert_close(model.encode_histories(eight_users(), latents), few)


def test_projections_by_hand():
    latents, table = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    logits = torch.tensor([[0.0, 1.0]])
    assert torch.equal(pulled_back(latents, logits, table, "none"), latents)
    assert pulled_back(latents, logits, table, "nearest").tolist() == [[0.0, 1.0]]
    share = 1 / (1 + torch.tensor(1.0).exp())
    mixed = pulled_back(latents, logits, table, "top_k")
    torch.testing.assert_close(mixed, torch.stack([share, 1 - share])[None])


class TestRollout(ModelContract):
    """The contract of every model, with rollouts in both stages of training."""

    model = "JEPA4Rec"
    settings: ClassVar = {**TINY, "rollout_steps": 3, "pretrain_epochs": 1}


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shops")
    words = ["from-recbole", str(ROOT / "dataset" / "toy"), "--split", "last_n", "--last"]
    for last in ("1", "3"):
        assert convert([*words, last, "--out", str(folder / f"toy{last}")]) == 0
    return folder


@pytest.fixture(scope="module")
def given(shops):
    return {**SMALL, **TINY, **SPLIT, "data_path": str(shops), "cache_dir": str(shops / "cache")}


@pytest.fixture(scope="module")
def trained(shops, given):
    """A run whose drift is measured."""
    given = {**given, "run_dir": str(shops / "run"), "epochs": 2, "rollout_steps": 3}
    return run("JEPA4Rec", "toy3", config_dict={**given, "drift_steps": 3})


class TestDrift:
    def test_every_way_begins_alike_and_equals_a_slow_loop(self, trained, shops):
        drift = trained["drift"]
        assert [*drift] == [*WAYS]
        for of_way in drift.values():
            for measure, values in of_way.items():
                assert len(values) == 3
                assert values[0] == pytest.approx(drift["text"][measure][0])
        found = load(shops / "run")
        net, catalogue = found.model, len(found.item_ids)
        cosine = {way: [[] for _ in range(3)] for way in WAYS}
        hits = {way: [[] for _ in range(3)] for way in WAYS}
        lines = (shops / "toy3" / "toy3.inter").read_text().split("\n")[1:-1]
        users = {}
        for line in sorted(lines, key=lambda line: float(line.split("\t")[2])):
            user, item, _ = line.split("\t")
            users.setdefault(user, []).append(found.row_of_id[item])
        for items in users.values():
            if len(items) < 5:
                continue
            before, after = items[:-3], items[-3:]
            for way in WAYS:
                with torch.no_grad():
                    made = self.steps(net, before, way)
                for step, (cosines, scores) in enumerate(made):
                    wanted = after[step]
                    more = scores[1:catalogue] - scores[wanted]
                    rank = 0.5 + (more > 0).sum() + (more == 0).sum() / 2
                    cosine[way][step].append(float(cosines[wanted]))
                    hits[way][step].append(float(rank <= 10))
        for way in WAYS:
            for measure, values in (("cosine", cosine), ("recall@10", hits)):
                expected = [sum(row) / len(row) for row in values[way]]
                assert drift[way][measure] == pytest.approx(expected, abs=1e-5)

    def steps(self, net, items, way):
        """Cosines and scores of each step, of one user."""
        histories = PackedHistories.of_lists([items], net.max_seq_length)
        if way == "repeated":
            return [(net.cosines(histories)[0], net.scores(histories)[0])] * 3
        if way == "text":
            made = []
            for _ in range(3):
                histories = PackedHistories.of_lists([items], net.max_seq_length)
                made.append((net.cosines(histories)[0], net.scores(histories)[0]))
                items = [*items, 1 + int(made[-1][1][1:].argmax())]
            return made
        found = net.rollout(histories, 3, way.removeprefix("latent, "))
        return [(step.cosines[0], step.scores[0]) for step in found]

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (
                "toy3 --drift_steps=4",
                "drift_steps is 4; allowed for data set 'toy3', which holds back the last 3 items "
                "of each user: 0 to 3",
            ),
            (
                "toy1 --drift_steps=2",
                "drift_steps is 2; allowed for data set 'toy1', which does not hold back the last "
                "items of each user (convert … --split last_n does): 0",
            ),
            (
                "toy3 --drift_steps=2 --filter_history=True",
                "drift_steps is 2; allowed with filter_history=True: 0",
            ),
            ("toy3 --rollout_steps=-1", "rollout_steps -1 must be a whole number from 0"),
            (
                "toy3 --rollout_projection=next",
                "rollout_projection 'next' must be null or nearest or top_k",
            ),
        ],
    )
    def test_what_cannot_be_measured_or_trained_is_refused(self, given, words, line, capsys):
        name, *words = words.split()
        keys = {k: v for k, v in given.items() if k != "benchmark_filename"}
        words += [f"--{key}={value}" for key, value in keys.items()]
        words.append("--benchmark_filename=train,valid,test")
        assert main(["--model=JEPA4Rec", f"--dataset={name}", *words]) == 2
        errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert errors == [f"error: {line}"]

    @pytest.mark.parametrize("key", ["rollout_steps", "drift_steps"])
    @pytest.mark.parametrize("model", ["RecFormer", "SASRec"])
    def test_a_model_without_a_predictor_is_refused(self, model, key, capsys):
        words = [f"--model={model}", "--dataset=toy", f"--data_path={ROOT / 'dataset'}"]
        assert main([*words, f"--{key}=3"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f"error: {key} 3 has no effect: {model} does not read it"


@pytest.mark.parametrize("steps", [6, 40])
def test_more_steps_than_a_window_has_room_for_are_refused(steps):
    given = {"rollout_steps": steps, "MAX_ITEM_LIST_LENGTH": 5}
    line = f"rollout_steps is {steps}; allowed with MAX_ITEM_LIST_LENGTH=5 and max_sequence_tokens"
    with pytest.raises(ValueError, match=f"^{line}=512: 0 to 5$"):
        JEPA4RecSettings.of(given)


class TestRecommender:
    @pytest.fixture
    def recommender(self, trained, shops):
        return load(shops / "run")

    def test_a_rollout_begins_with_what_is_recommended(self, recommender):
        histories = [recommender.item_ids[1:4], [], recommender.item_ids[3:9]]
        found = {name: recommender.rollout(histories, 4, name) for name in PROJECTIONS}
        assert recommender.rollout(histories, 4) == found["none"]
        first = recommender.recommend(histories, k=1)["item_id"].tolist()
        for paths in found.values():
            assert [len(path) for path in paths] == [4, 4, 4]
            assert [path[0] for path in paths] == first
            assert {item for path in paths for item in path} <= set(recommender.item_ids[1:])
        alone = recommender.rollout(histories[2:], 4, "top_k")
        assert alone == found["top_k"][2:]
        assert recommender.rollout([], 2) == []

    def test_raw_text_is_read_and_never_predicted(self, recommender):
        known = len(recommender.item_ids)
        paths = recommender.rollout([[{"title": "a thing of its own"}]], 3)
        assert {*paths[0]} <= set(recommender.item_ids) and recommender.model.n_items == known

    @pytest.mark.parametrize(
        ("steps", "projection", "line"),
        [
            (0, None, "steps is 0; allowed: a whole number from 1 to 10"),
            (11, None, "steps is 11; allowed: a whole number from 1 to 10"),
            (2.0, None, "steps is 2.0; allowed: a whole number from 1 to 10"),
            (2, "text", "projection is 'text'; allowed: none, nearest, top_k"),
        ],
    )
    def test_refusals(self, recommender, steps, projection, line):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            recommender.rollout([recommender.item_ids[1:3]], steps, projection)

    def test_a_model_without_a_predictor_says_so(self, tmp_path, given):
        given = {**given, "data_path": "dataset", "benchmark_filename": None, "epochs": 0}
        run("Markov", "toy", config_dict={**given, "run_dir": str(tmp_path / "m")})
        with pytest.raises(ValueError, match=r"^Markov has no predictor to roll out with"):
            load(tmp_path / "m").rollout([["i1"]], 2)


class TestCheckpoint:
    def test_a_map_of_latents_is_begun_or_asked_for(self, trained, shops, given, tmp_path):
        start = {**given, "epochs": 0, "frozen_items_epochs": 0, "checkpoint": str(shops / "run")}
        line = "rollout_steps is 1; allowed with this checkpoint, which was trained to roll out: 2"
        with pytest.raises(ValueError, match=line):
            run("JEPA4Rec", "toy3", config_dict={**start, "run_dir": str(tmp_path / "a")})
        same = {**start, "run_dir": str(tmp_path / "b"), "rollout_steps": 2, "drift_steps": 3}
        assert run("JEPA4Rec", "toy3", config_dict=same)["drift"] == trained["drift"]
        plain = {**given, "epochs": 1, "run_dir": str(tmp_path / "c")}
        run("JEPA4Rec", "toy3", config_dict=plain)
        begun = {**start, "checkpoint": str(tmp_path / "c"), "rollout_steps": 2, "epochs": 1}
        begun["run_dir"] = str(tmp_path / "d")
        assert run("JEPA4Rec", "toy3", config_dict=begun)["stage"] == "finetune"
