"""The rooms stand on floors, and an import looks down, wherever in a file it stands."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "recbole_jepa4rec"

FLOORS = (
    ("base",),
    ("config",),
    ("data",),
    ("text",),
    ("model",),
    ("evaluation",),
    ("training",),
    ("runner",),
    ("study",),
    ("convert",),
)
"""From the ground up; what stands directly in the package lies above them all."""

CONVERT_READS = {"base", "config", "data", "text", "convert"}
"""Conversion needs no model: it can be installed and understood without one."""


def floor_of(module):
    """Number of the floor on which ``recbole_jepa4rec.<module>`` stands."""
    first = module.split(".")[0]
    found = [number for number, rooms in enumerate(FLOORS) if first in rooms]
    return found[0] if found else len(FLOORS)


def imports(path):
    """Modules of this package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "recbole_jepa4rec":
                names = [f"recbole_jepa4rec.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("recbole_jepa4rec.") and not name.endswith(".__version__"):
                    yield name.removeprefix("recbole_jepa4rec."), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("recbole_jepa4rec."):
                    yield alias.name.removeprefix("recbole_jepa4rec."), node.lineno


def test_every_room_is_on_a_floor():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("room", [room for rooms in FLOORS for room in rooms])
def test_no_import_looks_up(room):
    up = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for module, line in imports(path)
        if floor_of(module) > floor_of(room)
        or (room == "convert" and module.split(".")[0] not in CONVERT_READS)
    ]
    assert not up, "\n".join(up)
