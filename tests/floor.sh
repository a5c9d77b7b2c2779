#!/usr/bin/env bash
# Run the core laws with the oldest version of every dependency in pyproject.toml, in an environment that
# is kept: bash tests/floor.sh [DIRECTORY]. It downloads 2.4 GB, since the oldest torch has no CPU build
# in the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 MPLBACKEND=Agg PIP_DISABLE_PIP_VERSION_CHECK=1
directory=${1:-/tmp/funcexplain-floor}
python="$directory/bin/python"

[ -x "$python" ] || "${PYTHON:-python3.11}" -m venv "$directory"
"$python" - > "$directory/floors.txt" << 'FLOORS'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = ("dask", "demo", "parquet", "progress", "scikit-learn", "tables", "test")
wanted = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
print("\n".join(r.replace(">=", "==") for r in wanted if not r.startswith("funcexplain")))
FLOORS
"$python" -m pip install -q --only-binary :all: -r "$directory/floors.txt"

# Old packages meet newer ones of their own, and are warned.
"$python" -m pytest -q -n 2 --dist loadfile -W ignore::DeprecationWarning \
    tests/test_versions.py tests/networks/test_functional.py tests/networks/test_recurrent.py \
    tests/networks/test_norms.py tests/networks/test_prepare.py tests/networks/test_opaque.py \
    tests/networks/test_trial.py tests/solvers/test_jacobian.py tests/solvers/test_optimizers.py \
    tests/problems/test_consensus.py tests/problems/test_mapping.py tests/problems/test_targets.py \
    tests/problems/test_transforms.py tests/solutions tests/solvers/test_gauss_newton.py \
    tests/solvers/test_loop.py tests/solvers/test_method.py tests/engine/test_closest.py \
    tests/engine/test_rows.py tests/engine/test_trouble.py tests/clusters/test_answers.py
