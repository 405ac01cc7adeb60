"""The rule of imports: each room imports only from rooms below it, and linalg is pure NumPy."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "keras_influence"
# From the roof to the cellar; rooms on one line do not know each other.
ROOMS = [
    ["models", "callbacks"],
    ["evaluation"],
    ["questions"],
    ["report"],
    ["engine.problem"],
    ["engine.curvature", "engine.summing"],
    ["engine.layers"],
    ["engine.passes"],
    ["engine.kernels"],
    ["engine.loss"],
    ["engine.data", "engine.parameters", "engine.selection"],
    ["linalg", "copies"],
    ["rebuilding", "storage", "checksums"],
    ["agreement", "described", "errors", "validate", "progress", "_keras", "version"],
]
LEVEL = {room: -level for level, rooms in enumerate(ROOMS) for room in rooms}
FILES = {path: path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py")}


def room_of(parts):
    return ".".join(parts[: 2 if parts[0] == "engine" else 1])


def imports(path):
    """Dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_each_room_imports_only_from_rooms_below_it():
    wrong = []
    for path, parts in FILES.items():
        own = room_of(parts)
        for name in imports(path):
            package, *rest = name.split(".")
            if package == "keras_influence" and parts != ("__init__",):
                other = room_of(rest)
                if own != other and not LEVEL[other] < LEVEL[own]:
                    wrong.append(f"{'/'.join(parts)} imports {name}")
    assert not wrong


def test_linalg_needs_neither_tensorflow_nor_keras():
    needed, found = {"linalg"}, set()
    while needed != found:
        found = set(needed)
        for path, parts in FILES.items():
            if room_of(parts) in found:
                for name in imports(path):
                    package, *rest = name.split(".")
                    assert package not in ("tensorflow", "keras"), f"{path} imports {name}"
                    needed |= {room_of(rest)} if package == "keras_influence" else set()
    assert needed == {"linalg", "errors", "validate"}
