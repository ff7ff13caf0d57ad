#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Formatting of every C++ file, the Python files compiled and their types checked, then clang-tidy over the rooms without
# libtorch: the files changed since the merge base with the main branch where there is one, or all of them with LINT_ALL=1.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t sources < <(git ls-files '*.cc' '*.h' | while read -r file; do [[ -f "$file" ]] && echo "$file"; done)
clang-format --dry-run -Werror "${sources[@]}"
echo "lint: ${#sources[@]} files are formatted"

mapfile -t scripts < <(git ls-files '*.py' '*.pyi' | while read -r file; do [[ -f "$file" ]] && echo "$file"; done)
/usr/bin/python3 -c 'import sys
for name in sys.argv[1:]:
    compile(open(name, encoding="utf-8").read(), name, "exec", dont_inherit=True)' "${scripts[@]}"
if /usr/bin/python3 -c 'import mypy' 2> /dev/null; then
  /usr/bin/python3 -m mypy --cache-dir .cache/mypy --no-error-summary python/draftflow python/build_backend.py
  echo "lint: ${#scripts[@]} Python files compile, mypy is content with the package"
else
  echo "lint: ${#scripts[@]} Python files compile; mypy is not installed"
fi

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
