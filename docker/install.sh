#!/usr/bin/env bash
# Install what stagedkd needs at run time into $VIRTUAL_ENV, in the versions of requirements.txt.
#
#   docker/install.sh cuda|cpu TORCH_INDEX EXTRAS
#
# cuda: every package has the hash of requirements.txt. cpu: torch and torchvision have the pinned versions, but come
# from TORCH_INDEX, since the pinned file has only the builds with CUDA; all others have the pinned hashes.
set -euo pipefail
device=$1 index=$2 extras=$3
options=()
for extra in ${extras//,/ }; do options+=(--extra "$extra"); done

case $device in
  cuda)
    uv pip install --require-hashes -r pyproject.toml "${options[@]}" -c requirements.txt
    ;;
  cpu)
    if [ -z "$index" ]; then
      echo "error: DEVICE=cpu needs --build-arg TORCH_INDEX=URL: requirements.txt pins the builds of torch with CUDA" >&2
      echo "  = help: PyTorch's installation page names the index of its CPU builds; DEVICE=cuda runs on CPUs, too" >&2
      exit 2
    fi
    # A package's lines are its first one, which names the version, and the indented ones with its hashes.
    awk '/^[^ #]/ {skip = /^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/} !skip' requirements.txt > pinned.txt
    versions=$(grep -oE '^(torch|torchvision)==[^ ]+' requirements.txt)
    # shellcheck disable=SC2086 # one word for each package
    uv pip install --no-deps --default-index "$index" $versions
    uv pip install --verify-hashes -r pyproject.toml "${options[@]}" -c pinned.txt
    ;;
  *)
    echo "error: DEVICE is '$device'; it is cuda or cpu" >&2
    exit 2
    ;;
esac
