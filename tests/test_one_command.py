"""The one command: what it answers, without importing what is heavy."""

import subprocess
import sys

import pytest

from recbole_jepa4rec.__main__ import COMMANDS, main
from recbole_jepa4rec.config.registry import MODELS, SETTINGS
from recbole_jepa4rec.config.run_settings import RunSettings


def said(words, capsys, status=0):
    assert main(words) == status
    return capsys.readouterr()


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_names_every_command(words, capsys):
    out = said(words, capsys).out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("command", "key"),
    [("run", "--max_train_seconds"), ("compare", "--model_list"), ("search", "--grace_epochs")],
)
def test_each_command_lists_its_keys_in_80_columns(command, key, capsys):
    out = said([command, "--help"], capsys).out
    assert out.startswith(f"usage: recbole-jepa4rec {command} ") and f"  {key}\n" in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])


@pytest.mark.parametrize("command", ["report", "runs", "convert"])
def test_others_describe_themselves_as_well(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


def test_models_are_listed_and_described(capsys):
    out = said(["models"], capsys).out
    assert all(name in out for name in [*MODELS, "SASRec", "BERT4Rec"])
    for name in MODELS:
        own = SETTINGS[name].keys().keys() - RunSettings.keys().keys()
        out = said(["models", name], capsys).out
        assert out.startswith(f"{name}: ") and all(f"  --{key}\n" in out for key in own)
    assert "BERT4Rec.yaml" in said(["models", "BERT4Rec"], capsys).out


def test_what_is_unknown_is_one_line(capsys):
    error = said(["models", "JEPA4R"], capsys, 2).err
    assert error == "error: unknown model 'JEPA4R' (did you mean 'JEPA4Rec'?)\n"
    error = said(["comparee"], capsys, 2).err
    assert error.endswith("error: unknown command 'comparee' (did you mean 'compare'?)\n")
    assert said([], capsys, 2).err.startswith("usage: recbole-jepa4rec COMMAND")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["compare", "-h"], ["models"]])
def test_nothing_heavy_is_imported_for_it(words):
    code = (
        "import sys; from recbole_jepa4rec.__main__ import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'recbole', 'transformers', 'pandas', 'ray') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_reader_may_have_seen_enough():
    command = [sys.executable, "-m", "recbole_jepa4rec", "models", *MODELS, *MODELS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout.read(9) == b"JEPA4Rec:"
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait() == 0
