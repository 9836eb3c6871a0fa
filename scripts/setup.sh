# Sourced by quickstart.sh and test.sh: makes .venv and installs the package against constraints.txt.
#   source scripts/setup.sh [extra]
extra=${1:+[$1]}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup.sh: error: $("$python" --version 2>&1) is too old: Python 3.11 or newer is needed (set PYTHON)" >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
source .venv/bin/activate
# The pinned torch comes first: it alone decides whether a CPU or a CUDA build is installed.
python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$extra"
