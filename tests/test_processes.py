"""Several processes give what one gives, and end together."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.launch import is_launched, joined
from tests import process_ends, process_steps
from tests.process_ends import launched
from tests.process_steps import STEPS, flat, steps, write_inputs

PROCESSES = 3
ROWS = (9, 2)
"""Of a batch: fewer than processes as well, so that one has none."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each process found."""
    alone = {rows: steps(folder, rows) for rows in ROWS}  # and the cache is there
    assert launched(process_steps.compare, folder, *ROWS, nproc=PROCESSES) == 0
    files = [folder / f"{number}.pt" for number in range(PROCESSES)]
    return alone, [torch.load(file, weights_only=True) for file in files]


@pytest.fixture(params=ROWS, ids=lambda rows: f"{rows} rows")
def stepped(request, found):
    """The steps that one process makes alone on the same batch, and those of each of several."""
    alone, everybody = found
    return alone[request.param], [process["steps"][request.param] for process in everybody]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_that_of_one_process(stepped, name):
    alone, everybody = stepped
    for process in everybody:
        one, several = flat(alone[name]), flat(process[name])
        assert one.keys() == several.keys()
        for key, expected in one.items():
            if expected is None or "/items" in key:
                continue
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(several[key], expected, rtol=1e-4, atol=1e-5 * scale)
        assert several["/terms"].sum() > 0.01


@pytest.mark.parametrize("name", STEPS)
def test_weights_without_gradient_are_those_of_one_process(stepped, name):
    alone, everybody = stepped
    none = {key for key, gradient in alone[name]["gradients"].items() if gradient is None}
    for process in everybody:
        gradients = process[name]["gradients"]
        assert {key for key, gradient in gradients.items() if gradient is None} == none
    assert len(none) < len(alone[name]["gradients"])


@pytest.mark.parametrize("name", STEPS)
def test_processes_agree_to_the_bit(stepped, name):
    first, *others = [flat(process[name]) for process in stepped[1]]
    for other in others:
        for key, tensor in first.items():
            assert tensor is other[key] is None or torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("name", STEPS)
def test_item_vectors_are_those_of_one_process_to_the_bit(stepped, name):
    alone, everybody = stepped
    for process in everybody:
        assert torch.equal(process[name]["items"], alone[name]["items"])


def test_rows_are_gathered_with_their_gradients(found):
    weights = torch.arange(1.0, 16.0).view(5, 3)
    for process, exchanged in enumerate(item["exchanges"] for item in found[1]):
        total = PROCESSES * (PROCESSES + 1) / 2  # each gave its number + 1 as gradient
        own = torch.zeros(5, 3)
        own[: 4 if process == 1 else 0] = total
        assert torch.equal(exchanged["gradient of one's rows"], own)
        assert torch.equal(exchanged["gradient through two"], 6 * (PROCESSES - 1) * weights)
        assert exchanged["share"] == pytest.approx([3 * (process + 1) / total, 0.0])
        assert exchanged["any"] == [True, False]
        assert exchanged["told"] == ["text 0 of 0", "text 1 of 0"]


def test_gradients_are_summed_and_what_has_none_keeps_none(found):
    for summed in (item["gradients"] for item in found[1]):
        assert torch.equal(summed["wide"], PROCESSES * torch.arange(40.0))
        assert torch.equal(summed["here"], torch.full((3,), 7.0))
        assert summed["nowhere"] is None
        assert torch.equal(summed["half"], torch.full((3,), PROCESSES, dtype=torch.bfloat16))


def test_a_difference_is_named(found):
    for nothing, bit, order in (item["differences"] for item in found[1]):
        assert nothing == ""
        assert bit.startswith("1.running_var differs between the processes")
        assert order.startswith("0.weight differs between the processes")


def test_the_first_process_goes_first(found):
    assert all(item["order"] for item in found[1])


def test_one_process_exchanges_nothing():
    rows = torch.ones(3, 2, requires_grad=True)
    assert processes.all_gather(rows) is rows and processes.shard(rows) is rows
    assert processes.all_reduce(rows) is rows and processes.shard_of_mean(rows, 0) is rows
    assert (processes.world_size(), processes.rank()) == (1, 0)
    assert processes.broadcast("text") == "text" and not processes.any_rank(False)
    processes.all_reduce_gradients([rows])
    assert rows.grad is None


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("error", 2, "error: the second process is at fault\n"),
        ("signal", 137, "error: process 1 was ended by SIGKILL\n"),
    ],
)
def test_one_that_fails_ends_all_with_its_message(tmp_path, capfd, how, status, message):
    assert launched(process_ends.end, tmp_path, how, nproc=2) == status
    assert capfd.readouterr().err == message
    assert not _alive(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_all_and_leave_no_orphan(tmp_path, number):
    with _launcher("told_to_end", tmp_path, nproc=2) as parent:
        try:
            _until(lambda: len(_alive(tmp_path)) == 2)
            parent.send_signal(number)
            status = parent.wait(120)
        finally:
            parent.kill()
    _until(lambda: not _alive(tmp_path))
    if number == signal.SIGTERM:
        assert status == 128 + number
        assert [file.read_text() for file in tmp_path.glob("*.told")] == [str(128 + number)] * 2


def test_two_launchers_join_their_processes(tmp_path):
    place = {"nproc": 1, "world_size": 2, "port": _free_port()}
    machines = [_launcher("meet", tmp_path, **place, group_offset=number) for number in range(2)]
    assert [machine.wait(120) for machine in machines] == [0, 0]
    assert [(tmp_path / f"{rank}.met").read_text() for rank in range(2)] == ["[0, 1]"] * 2


def test_a_port_in_use_is_named_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"^port {port} is in use; allowed: a free one$"):
            launched(process_ends.end, tmp_path, "error", nproc=2, port=port)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nproc": 2, "world_size": 3, "port": 1234}, "world_size is 3 and group_offset 0"),
        ({"nproc": 2, "world_size": 2, "group_offset": 2, "port": 1234}, "world_size is 2"),
        ({"nproc": 2, "world_size": 4}, "port is not given"),
        ({"nproc": 2, "port": 70000}, "port is 70000; allowed: 1 to 65535"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        launched(process_ends.end, tmp_path, "error", **given)


def test_settings_that_differ_from_the_environment_are_refused(monkeypatch):
    assert not is_launched()
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert is_launched()
    for key, value in {"nproc": 2, "world_size": 3, "ip": "elsewhere", "port": 2}.items():
        with (
            pytest.raises(ValueError, match=f"^{key} is {value!r} but"),
            joined(on_gpu=False, given={key: value}),
        ):
            pass
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="RANK is set and MASTER_PORT is ''"), joined(False, {}):
        pass


def _launcher(name: str, folder: Path, **places: int) -> subprocess.Popen[bytes]:
    """A program of its own that calls a function of process_ends in several processes."""
    code = "import sys; from tests import process_ends as p;"
    code += f"sys.exit(p.launched(p.{name}, {str(folder)!r}, **{places}))"
    return subprocess.Popen([sys.executable, "-c", code])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _alive(folder: Path) -> list[int]:
    """Processes that wrote their number here and are there still."""
    numbers = [int(file.read_text() or 0) for file in folder.glob("*.pid")]
    return [number for number in numbers if number and Path(f"/proc/{number}").exists()]


def _until(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
