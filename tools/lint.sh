#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Formatting of every C++ file, then clang-tidy over the rooms without libtorch: the files changed since the merge base with
# the main branch where there is one, or all of them with LINT_ALL=1.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t sources < <(git ls-files '*.cc' '*.h' | while read -r file; do [[ -f "$file" ]] && echo "$file"; done)
clang-format --dry-run -Werror "${sources[@]}"
echo "lint: ${#sources[@]} files are formatted"

without_torch='^src/(base|records|formats|store|ledger|flow|loader|cli|chaos)/.*\.cc$'
if [[ "${LINT_ALL:-0}" == 1 ]]; then
  files=$(printf '%s\n' "${sources[@]}")
else
  base=$(git merge-base HEAD origin/main 2> /dev/null || true)
  if [[ -z "$base" || "$base" == "$(git rev-parse HEAD)" ]]; then
    base=$(git rev-parse HEAD~1 2> /dev/null || git rev-parse HEAD)
  fi
  files=$(git diff --name-only --diff-filter=d "$base" -- '*.cc')
fi
mapfile -t checked < <(echo "$files" | grep -E "$without_torch" | grep -vE '_test\.cc$|models_module\.cc$' || true)
if ((${#checked[@]} == 0)); then
  echo "lint: no changed file for clang-tidy"
  exit 0
fi
printf '%s\0' "${checked[@]}" | xargs -0 -n 4 -P "$(nproc)" clang-tidy -p build --quiet --warnings-as-errors='*' 2> /dev/null
echo "lint: clang-tidy is content with ${#checked[@]} files"
