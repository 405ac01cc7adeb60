"""The rules of rooms: each imports only from rooms below it, linalg is pure NumPy, `_keras` alone looks into Keras."""

import ast
import pathlib
import re

import keras

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
    ["agreement", "errors", "validate", "progress", "underflow", "_keras", "version"],
    ["described"],
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


def words_of_keras():
    """Non-public names that Keras's sources use, its own modules apart."""
    folder = pathlib.Path(keras.__file__).parent / "src"
    texts = (path.read_text() for path in folder.rglob("*.py") if not path.stem.endswith("_test"))
    return {word for text in texts for word in re.findall(r"\b_[a-z]\w*", text)}


def private_names(path):
    """Non-public names that a file takes from an object that is not its own, each with a line.

    Of `self` and the like it is a name of the class in the file; so is one that the file defines.
    """
    tree = ast.parse(path.read_text())
    known = {getattr(node, "name", None) for node in ast.walk(tree)}
    found, own = [], {"_replace"}  # Public, of named tuples.
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                own.add(node.attr)
            else:
                found.append((node.attr, node.lineno))
        # Names for `getattr` and the like, and in lists, to be asked for later.
        texts = node.elts if isinstance(node, (ast.Tuple, ast.List)) else []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("attr"):
            texts = node.args[1:2]
        found += [(text.value, node.lineno) for text in texts if isinstance(text, ast.Constant)]
    names = [(name, line) for name, line in found if re.match(r"_[a-z]", str(name))]
    return [(name, line) for name, line in names if name not in own | known]


def test_non_public_names_of_keras_stand_in_one_room():
    words, wrong = words_of_keras(), []
    for path, parts in FILES.items():
        if room_of(parts) == "_keras":
            continue
        wrong += [f"{path}:{n} {w}" for w, n in private_names(path) if w in words]
        wrong += [f"{path} {name}" for name in imports(path) if name.startswith("keras.src")]
    assert not wrong
