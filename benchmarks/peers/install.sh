#!/usr/bin/env bash
# Makes one virtual environment per peer: FOLDER/<peer>/bin/python.
#
#   benchmarks/peers/install.sh FOLDER [peer ...]
#
# Peers: pydvl dattri kronfluence captum trak influenciae cleanlab (default: all).
# An environment that imports its peer already is left alone; delete it to make it again. A peer
# that cannot be installed is reported, and the others go on. TORCH is what pip is asked for,
# PYTHON the interpreter; on Linux set PIP_INDEX_URL to PyTorch's CPU index first if the default
# wheels, which bring CUDA, are not wanted.
set -u
folder=$(mkdir -p "${1:?usage: install.sh FOLDER [peer ...]}" && cd "$1" && pwd)
shift
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}

# What pip installs for a peer, and the module that proves it.
requirements() {
  case $1 in
    pydvl) echo "$TORCH pydvl==0.10.0 zarr<3 dask distributed" ;;
    dattri) echo "$TORCH dattri==0.3.0" ;;
    kronfluence) echo "$TORCH kronfluence==1.0.1" ;;
    captum) echo "$TORCH captum==0.9.0" ;;
    trak) echo "$TORCH traker==0.3.2" ;;
    # Of wrong labels alone: see ../label_issues.py.
    cleanlab) echo "cleanlab==2.7.1" ;;
    # influenciae asks for TensorFlow < 2.10, which has no build for Python 3.11: see below.
    influenciae) echo "tensorflow-cpu==2.15.1 numpy<2 matplotlib setuptools" ;;
    *) return 1 ;;
  esac
}

module() { [ "$1" = influenciae ] && echo deel.influenciae || echo "$1"; }

install() {
  local python=$folder/$1/bin/python log=$folder/$1.log wanted
  wanted=$(requirements "$1") || { echo "$1: not a peer known here"; return 1; }
  if "$python" -c "import $(module "$1")" 2>/dev/null; then
    echo "$1: there already"
    return
  fi
  # shellcheck disable=SC2086
  if "$PYTHON" -m venv "$folder/$1" && "$python" -m pip install $wanted numpy >"$log" 2>&1 &&
    { [ "$1" != influenciae ] || "$python" -m pip install --no-deps influenciae==0.3.0 >>"$log" 2>&1; } &&
    "$python" -c "import $(module "$1")" >>"$log" 2>&1; then
    echo "$1: installed ($("$python" -m pip freeze | grep -icE '.') packages)"
  else
    echo "$1: FAILED, see $log: $(tail -1 "$log")"
    return 1
  fi
}

failed=0
[ $# -gt 0 ] || set -- pydvl dattri kronfluence captum trak influenciae cleanlab
for peer in "$@"; do install "$peer" || failed=1; done
exit $failed
