"""What an installed package holds, asks for and does without the source tree."""

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recbole_jepa4rec import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The folder that `pip install .` would copy, and the requirements it would read."""
    folder = tmp_path_factory.mktemp("distribution")
    setup = [sys.executable, "-W", "ignore", "-c", "import setuptools; setuptools.setup()", "-q"]
    for command in (["build_py", "--build-lib", folder], ["egg_info", "--egg-base", folder]):
        subprocess.run([*setup, *command], cwd=ROOT, check=True)
    return folder


def test_every_module_template_and_yaml_ships(distribution):
    package = ROOT / "recbole_jepa4rec"
    modules = {path.relative_to(ROOT) for path in package.rglob("*.py")}
    modules.add(Path("recbole_jepa4rec/py.typed"))
    templates = {path.relative_to(ROOT) for path in package.glob("*/templates/*")}
    settings = {
        "recbole_jepa4rec" / path.relative_to(ROOT)
        for path in (ROOT / "properties").rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    shipped = (distribution / "recbole_jepa4rec").rglob("*.*")
    assert {path.relative_to(distribution) for path in shipped} == modules | templates | settings


def test_every_import_is_a_requirement(distribution):
    required = {canonicalize_name(each.name) for each in requirements(distribution)} | {"recbole"}
    providers = {"sklearn": ["scikit-learn"], **packages_distributions()}  # 3.10 does not know it
    for path in (ROOT / "recbole_jepa4rec").rglob("*.py"):
        for module in imported(path) - {"recbole_jepa4rec"}:
            names = {canonicalize_name(name) for name in providers.get(module, [module])}
            assert names & required, f"{path.name} imports {module}"


def test_recboles_pins_are_for_those_who_ask(distribution):
    plain = {each.name: each.specifier for each in requirements(distribution, extra="")}
    stock = {each.name: each.specifier for each in requirements(distribution, extra="stock")}
    assert "recbole" not in plain and "2.4.0" in plain["numpy"]
    assert "1.2.1" in stock["recbole"] and "2.0.0" not in stock["numpy"]


def test_every_python_that_is_promised_is_tried():
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (matrix,) = re.findall(r"python: \[(.+)\]", workflow)
    assert re.findall(r'"(.+?)"', matrix) == promised and "bash .ci/run" in workflow


def test_the_citation_is_of_this_version():
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == __version__


@pytest.mark.network
def test_a_bare_environment_runs_and_compares_without_the_source_tree(tmp_path):
    (torch,) = re.findall(r"^TORCH = (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    installed = tmp_path / "environment" / "bin"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    source = tmp_path / "source"  # where setuptools may leave what it builds
    for name in ("recbole_jepa4rec", "properties", "requirements"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for words in (["--no-deps", *torch.split()], [str(source)]):
        subprocess.run([installed / "pip", "install", "-q", *words], check=True)
    shutil.rmtree(source)

    def said(*words, status=0):
        done = subprocess.run(
            [installed / "recbole-jepa4rec", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout.splitlines()[-1]

    line = said("run", "--model=JEPA4Rec", "--dataset=ml-100k", status=1)
    error, command = line.rstrip("\n").split(": pip ")
    assert error == "error: RecBole is not installed; mend it by"
    subprocess.run([installed / "pip", "-q", *command.split()], check=True)
    run = said("run", "--model=JEPA4Rec", "--dataset=ml-100k", "--max_train_seconds=1")
    assert (tmp_path / run).name == "result.json" and (tmp_path / run).is_file()
    page = said("compare", "--model_list=Popularity,Markov", "--dataset=ml-100k", "--run_dir=both")
    assert (tmp_path / page).is_file() and (tmp_path / "both" / "comparison.html").is_file()


def requirements(folder, extra=None):
    """What is required; without those of other extras, if one (or none: "") is named."""
    (found,) = distributions(path=[str(folder)])
    every = [Requirement(line) for line in found.requires]
    if extra is None:
        return every
    chosen = [each for each in every if not each.marker or each.marker.evaluate({"extra": extra})]
    return chosen if not extra else [each for each in chosen if each.marker]


def imported(path):
    """Top-level names of the modules that a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names
