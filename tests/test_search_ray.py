"""``run_hyper.py`` on Ray: what it leaves, and what it survives."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import yaml

from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.ray
PATIENCE = 180

EPOCHS = 200
"""Validations without which a trial that is to be seen under way would be over too soon."""

SETTINGS = {**TINY, "dataset": "toy", "data_path": str(ROOT / "dataset"), "epochs": 2}
SPACE = "learning_rate: {loguniform: [1e-3, 1e-2]}\n"


@pytest.fixture
def search(workplace):
    """Starts the script as a user does; every search left over is ended."""
    started = []
    (workplace / "space.yaml").write_text(SPACE)

    def start(*words, **settings):
        (workplace / "tiny.yaml").write_text(yaml.safe_dump({**SETTINGS, **settings}))
        base = ["--model=SASRec", "--search=space.yaml", "--config_files=tiny.yaml"]
        command = [sys.executable, str(ROOT / "run_hyper.py"), *base, "--run_dir=search", *words]
        with open("output.log", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment()
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()


def environment():
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, log()
        time.sleep(0.05)
    return found


def log():
    with open("output.log", encoding="utf-8") as file:
        return file.read()


def ends_well(process):
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log()
    return out.splitlines()[-1]


def records(folder):
    return {
        path.parent.name: (json.loads(path.read_text()), path.stat().st_mtime_ns)
        for path in folder.glob("search/trials/*/trial.json")
    }


def trial_processes(process):
    """Processes in which Ray runs a trial now."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "ray::ImplicitFunc" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def log_of(trial):
    return (trial / "run.log").read_text()


def under_way(folder):
    """Names of trials that have validated but not ended."""
    folders = [*folder.glob("search/trials/*")]
    return [
        path
        for path in folders
        if not (path / "trial.json").exists()
        and (path / "run.log").exists()
        and "valid_score" in log_of(path)
    ]


def test_a_search_leaves_table_settings_report_and_one_test(search, workplace):
    result = ends_well(search("--num_samples=2", "--cpus_per_trial=1"))
    folder = workplace / "search"
    table = pd.read_csv(folder / "trials.csv", float_precision="round_trip")
    assert len(table) == 2 and {*table["status"]} <= {"finished", "stopped early"}
    assert table["ndcg@10"].is_monotonic_decreasing
    settings = yaml.safe_load((folder / "best.yaml").read_text())
    assert settings["learning_rate"] == table["learning_rate"][0]
    assert (folder / "search.html").stat().st_size > 10**6
    winner = json.loads((workplace / result).read_text())
    assert winner["valid"]["ndcg@10"] == table["ndcg@10"][0]  # same seed, data and settings
    assert [*folder.rglob("result.json")] == [folder / "best" / "result.json"]
    assert not [*folder.glob("trials/*/*.safetensors")]


def test_a_killed_trial_is_shown_tried_again_and_loses_nothing(search, workplace):
    process = search("--num_samples=2", "--max_concurrent=1", "--scheduler=none", epochs=40)
    wait_for(lambda: under_way(workplace))
    for each in trial_processes(process):
        each.kill()
    ends_well(process)
    found = {name: record for name, (record, _) in records(workplace).items()}
    assert [found[name]["status"] for name in ("0000", "0001")] == ["finished", "finished"]
    assert found["0000"]["attempts"] == 2 and found["0001"]["attempts"] == 1
    epochs = [point["epoch"] for point in found["0000"]["learning_curve"]]
    assert epochs == [*range(len(epochs))]  # of the second attempt alone
    assert "trial 0000 failed and is tried again: The actor is dead" in log()


def test_a_killed_search_goes_on_and_loses_no_finished_trial(search, workplace):
    words = ["--num_samples=3", "--max_concurrent=1", "--scheduler=none"]
    process = search(*words, epochs=40)
    wait_for(lambda: records(workplace) and under_way(workplace))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = records(workplace)
    assert 1 <= len(before) < 3
    ends_well(search(*words, "--resume", epochs=40))
    after = records(workplace)
    assert len(after) == 3 and {record["status"] for record, _ in after.values()} == {"finished"}
    assert {name: after[name] for name in before} == before
    table = (workplace / "search" / "trials.csv").read_text()
    assert ends_well(search(*words, "--resume", epochs=40)) == "search/best/result.json"
    assert (workplace / "search" / "trials.csv").read_text() == table


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_end_a_search_ends_and_leaves_nothing_running(search, workplace, number, status):
    process = search("--num_samples=2", "--scheduler=none", epochs=500, stopping_step=0)
    wait_for(lambda: under_way(workplace))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(PATIENCE) == status, log()
    wait_for(lambda: not any(child.is_running() for child in children))


def test_where_ray_does_not_end_the_process_does():
    code = (
        "import time; from recbole_jepa4rec.base import ray_cluster as it; it.LEAVE_SECONDS = 0.1\n"
        "it.ray.init, it.ray.shutdown = lambda **_: None, lambda: time.sleep(1000)\n"
        "with it.connected(None, 1): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 1
    assert done.stderr.endswith("error: Ray does not end; what is finished is on disk\n")


def test_a_failing_trial_does_not_end_the_search(search, workplace):
    (workplace / "space.yaml").write_text("n_heads: {choice: [1, 3]}\n")  # 3 does not divide 8
    ends_well(search("--algorithm=grid"))
    found = {name: record for name, (record, _) in records(workplace).items()}
    assert found["0000"]["status"] == "finished" and found["0001"]["status"] == "failed"
    assert found["0001"]["attempts"] == 2 and "multiple of" in found["0001"]["error"]


def test_trials_too_large_for_every_machine_are_refused(search, workplace):
    process = search("--cpus_per_trial=4096")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "error: cpus_per_trial 4096: the largest machine has" in log()


def test_a_cluster_that_is_not_there_leaves_no_search_behind(search, workplace):
    process = search("--num_samples=1", "--address=127.0.0.1:1")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "error: address '127.0.0.1:1': no Ray cluster: Connection refused" in log()
    ends_well(search("--num_samples=1"))  # no --resume


def test_a_port_where_something_else_listens_is_refused(search, workplace):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        process = search("--num_samples=1", f"--address={address}")
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert f"error: address '{address}': no Ray cluster: what answers there is none of" in log()


def test_without_ray_on_its_machine_a_search_ends_and_can_go_on(search, workplace):
    words = ["--num_samples=2", "--max_concurrent=1", "--scheduler=none"]
    process = search(*words, epochs=EPOCHS, stopping_step=EPOCHS)
    wait_for(lambda: records(workplace) and under_way(workplace))
    before = records(workplace)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.name() == "raylet":
            child.kill()
    assert process.wait(PATIENCE) == 1
    assert "error: Ray has ended on the machine of the search; the same command with" in log()
    ends_well(search(*words, "--resume", epochs=EPOCHS, stopping_step=EPOCHS))
    after = records(workplace)
    assert {name: after[name] for name in before} == before
    assert {record["status"] for record, _ in after.values()} == {"finished"}


def trials_on(node):
    """Processes in which a machine of Ray's runs or starts a trial now."""
    raylet = node.all_processes["raylet"][0].process.pid
    try:
        found = psutil.Process(raylet).children(recursive=True)
        return [child for child in found if "ray::ImplicitFunc" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def over(folder):
    """Trials that have trained, whether or not that is known to the search."""
    logs = folder.glob("search/trials/*/run.log")
    return [path for path in logs if "INFO validation: " in path.read_text()]


@pytest.mark.parametrize("moment", ["starting", "training", "ending"])
def test_two_machines_share_the_trials_and_one_may_go(search, workplace, moment):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        # an address of its own: else the search might stand on the machine that goes
        second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
        words = ["--num_samples=6", "--scheduler=none", f"--address={cluster.address}"]
        process = search(*words, epochs=EPOCHS, stopping_step=EPOCHS)
        if moment == "starting":
            wait_for(lambda: trials_on(second))
        else:
            wait_for(lambda: len({r["node"] for r, _ in records(workplace).values()}) == 2)
            wait_for(lambda: len(under_way(workplace)) == 2)
        if moment == "ending":
            count = len(over(workplace))
            wait_for(lambda: len(over(workplace)) > count)
        cluster.remove_node(second, allow_graceful=False)
        ends_well(process)
    finally:
        cluster.shutdown()
    found = [record for record, _ in records(workplace).values()]
    assert len(found) == 6 and {record["status"] for record in found} == {"finished"}
    if moment == "training":
        assert max(record["attempts"] for record in found) == 2
