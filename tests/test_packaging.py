"""What an installed package holds and asks for."""

import ast
import subprocess
import sys
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The folder that `pip install .` would copy, and the requirements it would read."""
    folder = tmp_path_factory.mktemp("distribution")
    for command in (["build_py", "--build-lib", folder], ["egg_info", "--egg-base", folder]):
        subprocess.run(
            [sys.executable, "-W", "ignore", "setup.py", "-q", *command], cwd=ROOT, check=True
        )
    return folder


def test_every_module_template_and_yaml_ships(distribution):
    package = ROOT / "recbole_jepa4rec"
    modules = {path.relative_to(ROOT) for path in package.rglob("*.py")}
    templates = {path.relative_to(ROOT) for path in package.glob("*/templates/*")}
    settings = {
        "recbole_jepa4rec" / path.relative_to(ROOT)
        for path in (ROOT / "properties").rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    shipped = (distribution / "recbole_jepa4rec").rglob("*.*")
    assert {path.relative_to(distribution) for path in shipped} == modules | templates | settings


def test_every_import_is_a_requirement(distribution):
    (found,) = distributions(path=[str(distribution)])
    required = {canonicalize_name(Requirement(line).name) for line in found.requires}
    providers = packages_distributions()
    for path in (ROOT / "recbole_jepa4rec").rglob("*.py"):
        for module in imported(path) - {"recbole_jepa4rec"}:
            names = {canonicalize_name(name) for name in providers.get(module, [module])}
            assert names & required, f"{path.name} imports {module}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_recboles_pins_hold_where_recbole_resolves(distribution, python):
    numpy = next(each for each in requirements(distribution, python) if each.name == "numpy")
    names = {each.name for each in requirements(distribution, python)}
    stock = python in ("3.10", "3.11")
    assert ("recbole" in names) == stock
    assert ("1.26.4" in numpy.specifier, "2.4.0" in numpy.specifier) == (stock, not stock)


def requirements(folder, python):
    """What is required without extras on a version of Python."""
    (found,) = distributions(path=[str(folder)])
    environment = {"python_version": python, "extra": ""}
    every = [Requirement(line) for line in found.requires]
    return [each for each in every if not each.marker or each.marker.evaluate(environment)]


def imported(path):
    """Top-level names of the modules that a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names
