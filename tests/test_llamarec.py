"""LlamaRec: prompts, letters, candidates, and a full ranking out of two stages."""

import copy
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from safetensors import safe_open

pytest.importorskip("peft", reason="the extra llm is not installed")

from recbole_jepa4rec import load
from recbole_jepa4rec.base.command import RESUMABLE
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.base.stopping import ending_on_sigterm
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.evaluation.metrics import target_ranks
from recbole_jepa4rec.model.llamarec import LlamaRec, _items_of
from recbole_jepa4rec.model.reranking import rerank, retrieve, training_candidates
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.runner.retriever import read_retriever
from recbole_jepa4rec.training.checkpoints import CheckpointFolder
from tests.contract import SMALL, ModelContract, made
from tests.tiny_llama import save_tiny_llama

SASREC = {"hidden_size": 16, "inner_size": 16, "loss_type": "CE", "epochs": 2}

PROMPT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Given user history in chronological order, recommend an item from the candidate pool with its \
index letter.

### Input:
User history:
{history}
Candidate pool:
{candidates}

### Response:
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Settings under which LlamaRec runs in a moment: a tiny Llama and a trained SASRec."""
    folder = tmp_path_factory.mktemp("llamarec")
    given = {**SMALL, **SASREC, "run_dir": str(folder / "sasrec")}
    run("SASRec", "toy", config_dict=given)
    titles = pd.read_csv("dataset/toy/toy.item", sep="\t", quoting=3, dtype=str).iloc[:, 1]
    return {
        "language_model": save_tiny_llama(folder / "tiny-llama", [*titles.dropna(), PROMPT]),
        "retriever": str(folder / "sasrec"),
        "learning_rate": 0.01,
        "epochs": 2,
        "train_batch_size": 16,
    }


@pytest.fixture
def read(tiny):
    """The training, validation and test parts that LlamaRec is made with."""

    def call(**settings):
        config = Config("LlamaRec", "toy", config_dict={**SMALL, **tiny, **settings})
        return SequentialTextDataset(config).build()

    return call


@pytest.fixture
def make(read):
    """Make LlamaRec; returns it and its training, validation and test parts."""

    def call(**settings):
        parts = read(**settings)
        torch.manual_seed(3)
        return made(parts[0].config, parts[0]), parts

    return call


@pytest.fixture
def model(make):
    """LlamaRec with low-rank weights that change something, and the parts of the data."""
    net, parts = make()
    move_lora(net)
    return net, parts


def move_lora(net):
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)


class TestLlamaRec(ModelContract):
    model = "LlamaRec"
    settings: ClassVar = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _settings(cls, tiny):
        cls.settings = {**tiny, "num_candidates": 8, "max_title_tokens": 6}


# --- one prompt, one letter


def slow_letter_logits(net, dataset, history, candidates):
    """One row, no padding, the whole vocabulary, weights merged."""
    tokenizer, merged = net.prompt.tokenizer, net.merged
    titles = [
        tokenizer.decode(tokenizer(title, add_special_tokens=False)["input_ids"][:32])
        for title in dataset.item_text["title"]
    ]
    letters = "ABCDEFGHIJKLMNOPQRST"
    pool = [f"({a}) {titles[item]}" for a, item in zip(letters, candidates, strict=True)]
    past = [titles[item] for item in history[-20:]]
    text = PROMPT.format(history="\n".join(past), candidates="\n".join(pool))
    logits = merged(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    return logits[[tokenizer(text + letter)["input_ids"][-1] for letter in letters]]


def merge(net):
    """Keep beside the model a plain transformer with the same weights, out of its parameters."""
    vars(net)["merged"] = copy.deepcopy(net.verbaliser.language_model).merge_and_unload().eval()


@torch.no_grad()
def test_letter_logits_equal_one_row_at_a_time(model):
    net, parts = model
    merge(net)
    rows = parts[2].inter_feat[0:12]
    scores = net.retriever.scores(net.packed(rows))
    items, _ = retrieve(scores, 20)
    histories = _items_of(net.packed(rows))
    prompts = net.prompt.encode(histories, items.tolist())
    assert len({len(prompt) for prompt in prompts}) > 3
    together = net.verbaliser(prompts)
    in_batches = net.verbaliser.in_batches(prompts, 1000)
    for row in range(12):
        slow = slow_letter_logits(net, parts[0], histories[row], items[row].tolist())
        torch.testing.assert_close(together[row], slow, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(in_batches[row], slow, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_is_the_cross_entropy_over_twenty_letters(model):
    net, parts = model
    merge(net)
    rows = parts[0].inter_feat[0:200:25]
    net.begin_epoch(4)
    (loss,) = net.calculate_loss(rows)
    keys = derive(net.seed, 4, rows["user_id"], rows["item_id"])
    drawn, _ = training_candidates(rows["item_id"], rows["item_id_list"], net.n_items, 20, keys)
    expected = []
    for row, target in enumerate(rows["item_id"].tolist()):
        candidates = drawn[row].tolist()
        history = [i for i in rows["item_id_list"][row].tolist() if i]
        logits = slow_letter_logits(net, parts[0], history, candidates).tolist()
        normaliser = math.log(sum(math.exp(value) for value in logits))
        expected.append(normaliser - logits[candidates.index(target)])
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


AUTHORS_PROMPT = (
    "### Instruction:\nGiven user history in chronological order, recommend an item from the "
    "candidate pool with its index letter.\n\n### Input:\nUser history: (1) {} \n (2) {}; \n "
    "Candidate pool: (A) {} \n (B) {} \n (C) {}\n\n### Response:\n"
)


@torch.no_grad()
def test_the_authors_prompt_and_their_next_token_loss(make):
    net, parts = make(prompt_format="llamarec", answer_loss="vocabulary", num_candidates=3)
    move_lora(net)
    net.eval()
    merge(net)
    tokenizer, titles = net.prompt.tokenizer, parts[0].item_text["title"].tolist()
    histories = parts[0].inter_feat.histories
    first = histories.offsets[[3, 5]]  # a history of two items each
    batch = histories.packed(first + 2, 10)
    net.begin_epoch(4)
    (loss,) = net.losses(batch)
    keys = derive(net.seed, 4, batch.users, batch.targets)
    drawn, place = training_candidates(batch.targets, batch.padded(), net.n_items, 3, keys)
    expected = []
    for row in range(2):
        items = histories.items[int(first[row]) : int(first[row]) + 2].tolist()
        prompt = AUTHORS_PROMPT.format(*(titles[i] for i in [*items, *drawn[row].tolist()]))
        assert net.prompt.write(items, drawn[row].tolist()) == prompt
        answer = tokenizer(prompt + "ABC"[int(place[row])])["input_ids"]
        ids = torch.tensor([[*answer, tokenizer.eos_token_id]])
        logits = net.merged(input_ids=ids).logits[0].log_softmax(-1)
        expected += [-logits[-3, ids[0, -2]], -logits[-2, ids[0, -1]]]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_the_next_token_loss_needs_an_end_token(make, tiny, tmp_path):
    shutil.copytree(tiny["language_model"], tmp_path / "endless")
    for file in (tmp_path / "endless").glob("*token*.json"):
        if "eos_token" in (content := json.loads(file.read_text())):
            del content["eos_token"]
            file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"endless' has no end token; allowed: letters"):
        make(language_model=str(tmp_path / "endless"), answer_loss="vocabulary")


@torch.no_grad()
def test_no_item_of_the_history_is_retrieved_where_they_leave_the_ranking(make):
    net, parts = make(filter_history=True, num_candidates=8)
    move_lora(net)
    rows = parts[2].inter_feat
    assert net.reads_whole_history
    batch = rows.histories.packed(rows.target[:30], 2, whole=True)
    scores, retrieved = net.scores(batch), net.retriever.scores(batch)
    wasted = 0
    for row, target in enumerate(rows.target[:30].tolist()):
        before = rows.histories.items[rows.histories.offsets[batch.users[row]] : target].tolist()
        order = retrieved[row].argsort(descending=True).tolist()
        free = [item for item in order if item and item not in before]
        wasted += len(set(order[:8]) & set(before))
        top = scores[row].topk(8).indices.tolist()
        assert set(top) == set(free[:8])
        assert torch.equal(scores[row, before], retrieved[row, before])
    assert wasted


def test_a_history_is_cut_to_the_newest_titles(make):
    net, parts = make(max_history_titles=4)
    titles = parts[0].item_text["title"].tolist()
    decode = net.prompt.tokenizer.decode

    def titles_read(limit):
        net.prompt.max_tokens = limit
        (tokens,) = net.prompt.encode([[*range(1, 10)]], [[11, 12]])
        assert len(tokens) <= limit
        return decode(tokens, skip_special_tokens=True)

    whole = titles_read(10_000)
    pool = f"(A) {titles[11]}\n(B) {titles[12]}"
    assert whole == PROMPT.format(history="\n".join(titles[6:10]), candidates=pool)
    shorter = titles_read(len(net.prompt.tokenizer(whole)["input_ids"]) - 1)
    assert shorter == PROMPT.format(history="\n".join(titles[7:10]), candidates=pool)


def test_titles_are_cut_by_tokens(make):
    net, parts = make(max_title_tokens=2)
    tokenizer, whole = net.prompt.tokenizer, parts[0].item_text["title"].tolist()
    for cut, title in zip(net.prompt.titles, whole, strict=True):
        assert title.startswith(cut)
        expected = tokenizer(title, add_special_tokens=False)["input_ids"][:2]
        assert tokenizer(cut, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize("prompt_format", ["alpaca", "llamarec"])
def test_item_tokens_bound_every_prompt(make, prompt_format):
    net, parts = make(prompt_format=prompt_format)
    rows = parts[0].inter_feat[0:300:7]
    keys = derive(1, rows["user_id"])
    items, _ = training_candidates(rows["item_id"], rows["item_id_list"], net.n_items, 20, keys)
    histories = _items_of(net.packed(rows))
    prompts = net.prompt.encode(histories, items.tolist())
    for prompt, history in zip(prompts, histories, strict=True):
        assert len(prompt) <= int(net.item_tokens[history].sum())


# --- candidates


def draw(targets, histories, keys, num_items=60, size=20):
    item_seq = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, histories)), True)
    return training_candidates(torch.tensor(targets), item_seq, num_items, size, torch.tensor(keys))


def test_training_candidates_are_the_target_among_unseen_items():
    history, target = [*range(1, 31)], 40
    seen, places = set(), []
    for key in range(300):
        items, place = draw([target], [history], [key])
        assert len(set(items[0].tolist())) == 20 and items[0, place[0]] == target
        assert not set(items[0].tolist()) & {0, *history}
        seen |= set(items[0].tolist())
        places.append(place.item())
    assert seen == {*range(31, 60)}
    counts = torch.bincount(torch.tensor(places), minlength=20)
    assert counts.min() > 0 and counts.max() < 40  # 15 each, give or take 4


def test_a_small_catalogue_fills_up_with_items_of_the_history():
    items, _ = draw([5], [[*range(1, 25), 5]], [1], num_items=31)
    assert {5, *range(25, 31)} <= set(items[0].tolist())
    assert len(set(items[0].tolist()) - {0}) == 20


def test_candidates_depend_on_their_key_alone():
    alone, _ = draw([40], [[1, 2]], [7])
    beside, _ = draw([50, 40], [[3, 4, 5], [1, 2]], [6, 7])
    assert torch.equal(alone[0], beside[1])
    assert not torch.equal(beside[0], beside[1])


# --- the full ranking


def slow_order(scores, logits_of):
    """Item ids from best to worst, ties as sets: the retrieved by logits, then by scores."""
    retrieved = sorted(logits_of, key=lambda i: -logits_of[i])
    others = [i for i in range(1, len(scores)) if i not in logits_of]
    return retrieved + sorted(others, key=lambda i: -scores[i])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e30])
def test_reranking_keeps_every_order(scale):
    torch.manual_seed(0)
    scores = torch.randn(9, 50) * scale
    scores[:, 0] = -torch.inf
    items, retrieved = retrieve(scores, 20)
    assert retrieved.all()
    logits = 1 + torch.randn(9, 20) * 1e-6
    logits[:, 3] = logits[:, 11]
    new = rerank(scores, items, retrieved, logits)
    for row in range(9):
        of_item = dict(zip(items[row].tolist(), logits[row].tolist(), strict=True))
        assert {*of_item} == {*scores[row].argsort(descending=True)[:20].tolist()}
        expected = slow_order(scores[row].tolist(), of_item)
        assert sorted(new[row, expected].tolist(), reverse=True) == new[row, expected].tolist()
        best = [new[row, item].item() for item in of_item]
        assert len({*best}) == len({*of_item.values()})
        assert new[row, items[row, 3]] == new[row, items[row, 11]]
    assert new[:, 0].tolist() == [-math.inf] * 9


def test_ties_across_the_last_place_are_left_to_the_retriever():
    scores = torch.tensor([[-torch.inf, 3.0, 1.0, 2.0, 1.0, 1.0, 0.0]])
    items, retrieved = retrieve(scores, 4)
    assert items[0, :2].tolist() == [1, 3] and retrieved.tolist() == [[True, True, False, False]]
    new = rerank(scores, items, retrieved, torch.tensor([[0.0, 1.0, 9.0, 9.0]]))
    ranks = [target_ranks(new, torch.tensor([item])).item() for item in range(1, 7)]
    assert ranks == [2, 4, 1, 4, 4, 6]
    same = torch.tensor([[-torch.inf, 5.0, 5.0, 5.0]])
    assert not retrieve(same, 2)[1].any()
    assert retrieve(same, 3)[0].tolist() == [[1, 2, 3]]  # nothing lies beyond: all tie inside


@torch.no_grad()
def test_ranks_beyond_the_retrieved_are_the_retriever_s(make, tiny):
    net, parts = make(num_candidates=6)
    move_lora(net)
    rows = parts[2].inter_feat[0:40]
    own = load(tiny["retriever"]).model.full_sort_predict(rows)
    ours = net.full_sort_predict(rows)
    before, after = (target_ranks(scores, rows["item_id"]) for scores in (own, ours))
    beyond = before > 6
    assert 5 < beyond.sum() < len(beyond) - 5
    assert torch.equal(before[beyond], after[beyond])
    assert (after[~beyond] <= 6).all() and not torch.equal(before, after)


@torch.no_grad()
def test_a_retriever_reads_what_it_was_trained_on(make, tiny):
    net, parts = make(MAX_ITEM_LIST_LENGTH=25)
    rows = parts[2].inter_feat[0:40]
    assert rows["item_id_list"].shape[1] == 25 and rows["item_length"].max() > 10
    own_rows = (
        SequentialTextDataset(
            Config("LlamaRec", "toy", config_dict={**SMALL, **tiny, "MAX_ITEM_LIST_LENGTH": 10})
        )
        .build()[2]
        .inter_feat[0:40]
    )
    own = load(tiny["retriever"]).model.full_sort_predict(own_rows)
    assert torch.equal(net.retriever.scores(net.packed(rows))[:, 1:], own[:, 1:])


def test_a_retriever_that_numbers_the_items_otherwise_is_refused(read, tiny):
    parts = read()
    assert parts[0].fingerprint  # kept: it does not depend on the numbers
    tokens = parts[0].field2id_token["item_id"]
    tokens[[3, 7]] = tokens[[7, 3]]
    with pytest.raises(ValueError, match="numbers the items in another order") as caught:
        read_retriever(Path(tiny["retriever"]), parts[0].config, parts[0])
    assert tiny["retriever"] in str(caught.value) and "\n" not in str(caught.value)


def test_reading_a_retriever_draws_no_random_numbers(read, tiny):
    parts = read()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    read_retriever(Path(tiny["retriever"]), parts[0].config, parts[0])
    assert torch.equal(torch.get_rng_state(), before)


# --- what is trained, saved and loaded


def test_only_low_rank_weights_are_trained_and_saved(make, tiny, tmp_path):
    net, parts = make()
    before = {name: weight.clone() for name, weight in net.named_parameters()}
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):  # A moves once B has
        (loss,) = net.train().calculate_loss(parts[0].inter_feat[0:8])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, weight in net.named_parameters() if not weight.equal(before[name])}
    assert moved == trained
    assert set(net.state_dict()) == {*trained, "retriever_digest"}


@pytest.fixture
def result(tiny, tmp_path):
    """Run LlamaRec with a retriever that it trains first."""

    def call(name="run", **settings):
        given = {**SMALL, **tiny, "retriever": "SASRec", "epochs": 1, **settings}
        given = {"retriever_settings": {**SASREC, "epochs": 1}, **given}
        return run("LlamaRec", "toy", config_dict={**given, "run_dir": str(tmp_path / name)})

    return call


def test_a_run_folder_is_loaded_again(result, tmp_path, tiny):
    result()
    folder = tmp_path / "run"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert all("lora_" in name or name == "retriever_digest" for name in file.keys())  # noqa: SIM118
    moved = tmp_path / "moved"
    folder.rename(moved)
    net = load(moved).model
    assert net.label == "LlamaRec (tiny-llama, retriever SASRec-CE)"
    config = Config(config_file_list=[moved / "config.yaml"])
    rows = SequentialTextDataset(config).build()[2].inter_feat[0:1000]
    ranks = target_ranks(net.full_sort_predict(rows), rows["item_id"])
    assert ranks.tolist() == pd.read_parquet(moved / "per_user.parquet")["rank"].tolist()

    shutil.rmtree(moved / "retriever")
    shutil.copytree(tiny["retriever"], moved / "retriever")
    with pytest.raises(ValueError, match=r"trained beside another retriever than '\S+moved"):
        load(moved).model.full_sort_predict(rows)


def test_a_retriever_is_not_trained_twice_and_has_its_share_of_the_time(result, tmp_path):
    first = result(max_train_seconds=100, retriever_time_ratio=0.25)
    file = tmp_path / "run" / "retriever" / "result.json"
    settings = (file.parent / "config.yaml").read_text()
    assert "max_train_seconds: 25.0" in settings and "seed: 2020" in settings
    assert json.loads(file.read_text())["epochs"] == 1
    assert first["seconds"]["finetune"] > 0
    written = file.stat().st_mtime_ns
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed
    again = result(max_train_seconds=100, retriever_time_ratio=0.25)
    assert file.stat().st_mtime_ns == written and again["test"] == first["test"]
    for name in ("result.json", "model.safetensors", "adapter_model.safetensors"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="holds a retriever that was trained with other settings"):
        result(max_train_seconds=100, retriever_settings={"epochs": 2})


def test_told_to_end_while_its_retriever_trains_it_goes_on(result, tmp_path, monkeypatch):
    whole = result("whole", retriever_settings={**SASREC, "epochs": 2})
    write = CheckpointFolder.write

    def write_and_be_told(self, state):
        write(self, state)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", write_and_be_told)
        with ending_on_sigterm(), pytest.raises(SystemExit) as ended:
            result("broken", retriever_settings={**SASREC, "epochs": 2})
    assert ended.value.code == RESUMABLE
    assert (tmp_path / "broken" / "retriever" / "checkpoints").exists()
    found = run(config_dict={"resume": str(tmp_path / "broken")})
    assert [found[key] for key in ("valid", "test")] == [whole[key] for key in ("valid", "test")]
    retriever = json.loads((tmp_path / "broken" / "retriever" / "result.json").read_text())
    assert retriever["starts"] == 2


def test_without_epochs_the_weights_fit_any_retriever_that_is_trained_later(result, tmp_path):
    result(epochs=0)
    net = load(tmp_path / "run").model
    assert not net.retriever_digest.any() and net.retriever.label == "SASRec-CE"


# --- wrong input


def test_wrong_settings_are_refused_before_the_retriever_is_trained(result, tmp_path):
    for settings, message in (
        ({"retriever_settings": {"epoch": 3}}, "retriever_settings: unknown key 'epoch'.* mean"),
        ({"language_model": "/nowhere"}, "language_model '/nowhere' cannot be used"),
        ({"lora_target_modules": ["c_attn"]}, "lora_target_modules .* do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            result(**settings)
        assert not (tmp_path / "run" / "retriever").exists()


def test_without_a_retriever_it_is_not_made(read):
    part = read()[0]
    with pytest.raises(ValueError, match="needs a retriever, which RecBole's own scripts do not"):
        LlamaRec(part.config, part)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language_model": "/nowhere"}, "language_model '/nowhere' cannot be used: .*not exist"),
        ({"language_model": "dataset/toy"}, "language_model 'dataset/toy' cannot be used"),
        ({"num_candidates": 27}, "num_candidates 27 must be a whole number from 2 to 26"),
        ({"retriever": "SASRek"}, "'SASRek' is neither a run folder nor a model: .*'SASRec'"),
        ({"retriever": "LlamaRec"}, "retriever 'LlamaRec' would need a retriever itself"),
        ({"retriever": "SASRec"}, "'retriever' is no finished run's folder"),
        ({"retriever": "dataset/toy"}, "'dataset/toy' is no finished run's folder"),
        ({"retriever_settings": 3}, "retriever_settings 3 must be a mapping"),
        ({"MAX_ITEM_LIST_LENGTH": 5}, "reads 10 items .*allowed: --MAX_ITEM_LIST_LENGTH=10"),
        ({"train_stage": "both"}, "train_stage is 'both'; allowed: finetune"),
        ({"language_model_precision": "int4"}, "'int4' must be null or fp32 or bf16 or fp16"),
        ({"lora_target_modules": ["c_attn"]}, r"lora_target_modules \['c_attn'\] do not fit"),
        ({"lora_target_modules": ["lm_head"]}, "must leave out the .* output layer"),
        ({"title_field": "name"}, "title_field 'name' is none of title, categories, brand"),
        ({"max_sequence_tokens": 150}, "max_sequence_tokens 150 is too small: .*=20 takes"),
    ],
)
def test_wrong_settings_are_named(make, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def test_without_peft_one_line_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install "recbole_jepa4rec\[llm\]"'):
        make()


def test_letters_must_be_single_tokens(make, tmp_path):
    alphabet = [chr(code) for code in range(33, 127) if chr(code) != "C"]
    folder = save_tiny_llama(tmp_path / "odd", ["letters"], alphabet)
    with pytest.raises(ValueError, match=r"odd' has no single token for the letter 'C'"):
        make(language_model=folder)


@pytest.fixture
def other_data(tmp_path):
    """A data set named toy with fewer interactions, whose files can be changed."""
    shutil.copytree("dataset/toy", tmp_path / "toy")
    lines = (tmp_path / "toy" / "toy.inter").read_text(encoding="utf-8").splitlines()
    (tmp_path / "toy" / "toy.inter").write_text("\n".join(lines[:-60]) + "\n", encoding="utf-8")
    return tmp_path


def test_a_retriever_of_other_data_is_refused(make, other_data):
    with pytest.raises(ValueError, match="was trained on other data: toy"):
        make(data_path=str(other_data))


def test_a_data_set_without_text_is_refused(read, other_data):
    (other_data / "toy" / "toy.item").unlink()
    part = read(data_path=str(other_data))[0]
    with pytest.raises(ValueError, match=r"toy\.item"):
        LlamaRec.refuse_settings(part.config, part)


def test_more_candidates_than_items_are_refused(read, other_data):
    file = other_data / "toy" / "toy.inter"
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    few = [line for line in lines if line.split("\t")[1] < "i10"]
    file.write_text("\n".join([header, *few]) + "\n", encoding="utf-8")
    part = read(data_path=str(other_data))[0]
    with pytest.raises(ValueError, match=r"num_candidates is 20; allowed: 2 to \d+, the items"):
        LlamaRec.refuse_settings(part.config, part)
