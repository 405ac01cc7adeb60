"""What is packed: all files of the package, extras that messages name; and examples start in silence."""

import configparser
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_influence"


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_files_that_are_no_modules_are_package_data():
    globs = settings()["options.package_data"]["keras_influence"].split()
    packed = {path for pattern in globs for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert others == packed
    assert PACKAGE / "report" / "templates" / "report.js" in packed


def test_extras_that_are_named_exist():
    extras = set(settings()["options.extras_require"])
    sources = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = set()
    for path in sources:
        for found in re.findall(r"(?:keras-influence|\.)\[([\w,]+)\]", path.read_text()):
            named |= set(found.split(","))
    assert {"report", "store"} <= named <= extras


def test_examples_start_without_messages():
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", "import quiet, keras; print(keras.ops.ones(2).shape)"],
        cwd=ROOT / "examples",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "(2,)"
    assert done.stderr == ""
    scripts = [p for p in (ROOT / "examples").glob("*.py") if "__main__" in p.read_text()]
    assert len(scripts) > 8
    for path in scripts:
        first = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        own = [first.index(name) for name in ("quiet", "common") if name in first]
        assert "keras" not in first or (own and min(own) < first.index("keras")), path


def test_extras_that_are_promised_exist_and_the_version_stands_in_one_place():
    parsed = settings()
    promised = {"cpu", "plot", "report", "store", "dask", "docs", "test"}
    assert promised <= set(parsed["options.extras_require"])
    assert parsed["metadata"]["version"] == "attr: keras_influence.version.__version__"
    version = re.search(r'"(.*)"', (PACKAGE / "version.py").read_text())[1]
    others = ("setup.cfg", "pyproject.toml", "docs/conf.py", "README.md", "docs/index.md")
    assert not [name for name in others if version in (ROOT / name).read_text()]


WITHOUT_TENSORFLOW = """
import importlib.abc, sys
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
try:
    import keras_influence
except ImportError as error:
    print(error)
"""


def test_without_tensorflow_the_line_to_install_is_named():
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'needs TensorFlow: pip install "keras-influence[cpu]"' in done.stdout, done.stderr
