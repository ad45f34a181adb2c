"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT

YAML_OF_A_CLASS = """
import yaml
from recbole_jepa4rec.config.vector_settings import TextRecSettings
from tests.test_settings import own_keys
for key, said in own_keys(TextRecSettings).items():
    default = yaml.safe_dump(said.default, default_flow_style=True).split(chr(10))[0]
    print(f"{key}: {default}  # ({said.type}) {said.meaning}")
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what the recipes touch, with the yaml files inside the package as installed."""
    for name in ("recbole_jepa4rec", "properties", "tests", "dataset/toy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "recbole_jepa4rec" / "properties").symlink_to(tmp_path / "properties")
    return tmp_path


def blocks():
    """The pieces of Python in the order of the page."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", page, re.S)]


def put_before(path, line, addition):
    text = path.read_text(encoding="utf-8")
    assert text.count(line) == 1, f"{path} has no single line {line!r}"
    indent = " " * (len(line) - len(line.lstrip()))
    path.write_text(text.replace(line, textwrap.indent(addition, indent) + line), encoding="utf-8")


def python(tree, *words):
    found = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


@pytest.mark.slow
def test_recipes(tree):
    model, settings, entry, model_test, metric, layout, records, source_test = blocks()
    package = tree / "recbole_jepa4rec"
    (package / "model" / "textrec.py").write_text(model)
    put_before(package / "config/vector_settings.py", "class UniSRecSettings", settings + "\n\n")
    imported, entry, line = entry.split("\n")[:3]
    put_before(package / "config/registry.py", "from dataclasses", imported + "\n")
    put_before(package / "config/registry.py", '    "STAR": Entry(', entry + "\n")
    put_before(package / "config/registry.py", '    "STAR": STARSettings,\n', line + "\n")
    (tree / "properties/model/TextRec.yaml").write_text(python(tree, "-c", YAML_OF_A_CLASS))
    (tree / "tests/test_textrec.py").write_text(model_test)

    put_before(package / "evaluation/metrics.py", "RANK_METRICS: dict", metric + "\n\n")
    line = '    "map": _reciprocal_rank,\n'
    put_before(package / "evaluation/metrics.py", line, '"rbp": _rank_biased_precision,\n')
    names = (package / "config/protocol.py").read_text()
    (package / "config/protocol.py").write_text(names.replace('"map")', '"map", "rbp")'))

    put_before(package / "convert/sources.py", '    "steam": Layout(', layout)
    put_before(package / "convert/command_line.py", '    "steam": Kind(', records)
    (tree / "tests/convert/test_google_local.py").write_text(source_test)

    tests = ("textrec", "metrics", "settings")
    files = [f"tests/test_{name}.py" for name in tests] + ["tests/convert/test_google_local.py"]
    python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    script = "import sys; from recbole_jepa4rec.runner.quick_start import main; main(sys.argv[1:])"
    words = ["--model=TextRec", "--dataset=toy", "--epochs=1", "--metrics=[NDCG, RBP]"]
    words += ["--text_encoder=vectors.npy", "--valid_metric=RBP@10", "--run_dir=run"]
    make_vectors = "import numpy as n; n.save('vectors', n.eye(30, 8, dtype='f4'))"
    python(tree, "-c", make_vectors)
    python(tree, "-c", script, *words)
    assert '"rbp@10"' in (tree / "run" / "result.json").read_text()
