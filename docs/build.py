"""Build the documentation site; a warning is an error.

    pip install -e ".[cpu,docs]"
    python docs/build.py                 # executes the notebooks, a few minutes
    python docs/build.py --no-notebooks  # their text only, seconds

The site is then in docs/_build/html; index.html opens by double click.
"""

import argparse
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


def build(output, notebooks=True):
    """Build the site into a folder; returns Sphinx's exit status, 0 for success."""
    from sphinx.cmd.build import main

    # The kernels that execute the notebooks import the package as it is here, and start in silence.
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # It says so at each start if it is on.
    output = pathlib.Path(output)
    options = [] if notebooks else ["-D", "nb_execution_mode=off"]
    places = ["-d", str(output / "doctrees"), str(HERE), str(output / "html")]
    return main(["-W", "--keep-going", "-q", "-E", "-b", "html", *options, *places])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-notebooks", action="store_true", help="do not execute them")
    parser.add_argument("--output", default=HERE / "_build")
    chosen = parser.parse_args()
    status = build(chosen.output, not chosen.no_notebooks)
    print(f"{pathlib.Path(chosen.output).resolve() / 'html' / 'index.html'}" if not status else "")
    sys.exit(status)
