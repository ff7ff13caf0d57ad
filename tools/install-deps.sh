#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that draftflow needs, only those that are missing. `install-deps.sh lint` adds the tools of
# `make lint`. Without root it prints the one command an administrator must run, and fails.
set -euo pipefail

packages=(build-essential cmake ninja-build ccache mold pkg-config libtorch-dev python3-torch libgloo-dev libopenblas0-pthread
  libopenblas-dev libfmt-dev nlohmann-json3-dev libcli11-dev libyaml-cpp-dev libsqlite3-dev libxxhash-dev zlib1g-dev libdeflate-dev libssl-dev
  libsentencepiece-dev sentencepiece libgtest-dev libgmock-dev libsodium-dev libzstd-dev libfuse3-dev fuse3
  sshfs openssh-sftp-server libpq-dev postgresql iproute2 python3-dev pybind11-dev libdlpack-dev python3-numpy python3-pytest
  python3-venv mypy)
if [[ "${1:-}" == lint ]]; then
  packages+=(clang-format clang-tidy)
fi

if ! command -v dpkg-query > /dev/null; then
  echo "make deps: this is not a Debian system. Install what matches these Debian 12 packages, then run cmake yourself:" >&2
  echo "  ${packages[*]}" >&2
  exit 1
fi

# One call for all. A package that dpkg has never heard of makes it exit 1, which is no failure here: hence `|| true`.
installed=" $({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2> /dev/null || true; } |
  sed -n 's/^installed //p' | tr '\n' ' ') "
missing=()
for package in "${packages[@]}"; do
  [[ "$installed" == *" $package "* ]] || missing+=("$package")
done

install_command=(apt-get install -y --no-install-recommends)
if ((${#missing[@]} > 0)); then
  if [[ "$(id -u)" != 0 ]]; then
    echo "make deps: ${#missing[@]} packages are missing. An administrator must run this one command, then run make again:" >&2
    echo "  sudo ${install_command[*]} ${missing[*]}" >&2
    exit 1
  fi
  echo "make deps: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  for try in 1 2; do
    apt-get update > "$log" 2>&1 || { tail -n 5 "$log" >&2; }
    if "${install_command[@]}" "${missing[@]}" > "$log" 2>&1; then
      break
    fi
    tail -n 20 "$log" >&2
    if ((try == 2)); then
      echo "make deps: apt-get failed twice; its last lines are above" >&2
      exit 1
    fi
    echo "make deps: apt-get failed; trying once more" >&2
  done
  echo "make deps: installed ${#missing[@]} packages"
fi

# libtorch calls whatever libblas.so.3 is chosen; the reference BLAS is sixty times slower than OpenBLAS.
blas="/usr/lib/$(gcc -dumpmachine 2> /dev/null || echo x86_64-linux-gnu)"
chosen=$(readlink -f "$blas/libblas.so.3" || true)
if [[ "$chosen" != *openblas* ]]; then
  wanted="$blas/openblas-pthread/libblas.so.3"
  name="libblas.so.3-$(basename "$blas")"
  if [[ "$(id -u)" != 0 ]]; then
    echo "make deps: libblas.so.3 is ${chosen:-missing}, not OpenBLAS. An administrator must run this one command:" >&2
    echo "  sudo update-alternatives --set $name $wanted" >&2
    exit 1
  fi
  echo "make deps: choosing OpenBLAS as libblas.so.3"
  update-alternatives --set "$name" "$wanted" > /dev/null
fi
if ((${#missing[@]} == 0)); then
  echo "make deps: nothing to do"
fi
