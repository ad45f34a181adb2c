"""Weights and state: what is written comes back, and nothing else is accepted."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from recbole_jepa4rec.base.checkpoint import (
    load_state,
    load_weights,
    read_weights,
    save_state,
    save_weights,
    weights_file,
)


class Tied(nn.Module):
    """Two names for one tensor, a transposed one, and a buffer."""

    def __init__(self, width=3):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, width))
        self.b = self.a
        self.c = nn.Parameter(torch.randn(width, 5).t())
        self.register_buffer("steps", torch.tensor(7))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_weights_come_back_to_the_bit(path):
    model, other = Tied(), Tied()
    save_weights(model, path, {"epoch": "3"})
    assert load_weights(other, path) == {"model": "Tied", "epoch": "3"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_weights_of_another_shape_name_it_and_change_nothing(path):
    save_weights(Tied(width=3), path)
    model = Tied(width=2)
    before = model.a.detach().clone()
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(model, path)
    assert "weights of Tied" in str(error.value)
    assert "a is [4, 3] instead of [4, 2]" in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(model.a, before)


def test_missing_and_unknown_names_are_errors_unless_optional(path):
    save_weights(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"bias \[.*\] is unknown"):
        load_weights(nn.Linear(2, 2, bias=False), path)
    load_weights(nn.Linear(2, 2, bias=False), path, optional=["bias"])

    save_weights(nn.Linear(2, 2, bias=False), path)
    with pytest.raises(ValueError, match="bias is missing"):
        load_weights(nn.Linear(2, 2), path)
    load_weights(nn.Linear(2, 2), path, optional=["b*"])


def test_weights_for_other_items_are_refused_and_change_nothing(path):
    save_weights(Tied(), path, {"item_ids": "abc"})
    model = Tied()
    before = model.a.detach().clone()
    with pytest.raises(ValueError, match="other items or another order"):
        load_weights(model, path, item_ids="abd")
    assert torch.equal(model.a, before)
    load_weights(model, path)
    load_weights(model, path, item_ids="abc")
    save_weights(Tied(), path)
    with pytest.raises(ValueError, match="other items or another order"):
        load_weights(model, path, item_ids="abc")


def test_only_three_faults_are_listed(path):
    save_weights(nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]), path)
    with pytest.raises(ValueError, match=r"and 8 more$"):
        load_weights(Tied(), path, optional=["steps"])


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_weights_are_refused(path, kept):
    save_weights(Tied(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_weights(Tied(), path)


def test_foreign_weights_are_refused(path):
    torch.save(Tied().state_dict(), path)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not"):
        read_weights(path)
    with pytest.raises(ValueError, match=r"nothing\.safetensors does not exist"):
        read_weights(path.with_name("nothing.safetensors"))


def test_state_comes_back_as_plain_values(tmp_path):
    state = {"score": np.float64(0.5), "steps": [1, (2, None)], "moments": {0: torch.ones(2)}}
    save_state(tmp_path / "state.pt", state)
    back = load_state(tmp_path / "state.pt")
    assert type(back["score"]) is float
    assert back["steps"] == [1, (2, None)]
    assert torch.equal(back["moments"][0], torch.ones(2))


def test_an_object_is_not_saved_and_the_old_file_stays(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, {"epoch": 1})
    with pytest.raises(ValueError, match=r"state 'deep\.config' is a object"):
        save_state(path, {"deep": {"config": object()}})
    assert load_state(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


class Bomb:
    """Pickles to a call."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


@pytest.mark.parametrize(
    "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_code_in_a_state_is_not_run(tmp_path, write):
    path = tmp_path / "state.pt"
    write({"epoch": Bomb()}, path)
    with pytest.raises(ValueError, match="more than plain values") as error:
        load_state(path)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch advises to run it


@pytest.mark.parametrize("content", [b"", b"PK", b"no state"])
def test_truncated_states_are_refused(tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated") as error:
        load_state(path)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("failure", [OSError("bad read"), MemoryError(), KeyError("x")])
def test_whatever_torch_raises_is_one_line_without_its_advice(tmp_path, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    save_state(tmp_path / "state.pt", {"epoch": 1})
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=rf"state\.pt is truncated.*{type(failure).__name__}"):
        load_state(tmp_path / "state.pt")


def test_a_checkpoint_is_a_file_or_a_run_folder(path):
    with pytest.raises(ValueError, match=r"holds model\.safetensors"):
        weights_file(path.parent)
    save_weights(Tied(), path)
    assert weights_file(path.parent) == weights_file(path) == path
