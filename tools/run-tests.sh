#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run-tests.sh BUILD: every test of a build folder. Output of failures as they happen; the skipped tests with their reasons
# before ctest's own summary, which ends the output.
set -uo pipefail

build=${1:?usage: run-tests.sh BUILD_FOLDER}
log="$build/Testing/run-tests.log"
mkdir -p "$build/Testing"

echo "running the tests of $build"
ctest --test-dir "$build" --output-on-failure --no-tests=error -j"$(nproc)" > "$log" 2>&1
status=$?

# Failures and progress first; ctest's summary is kept for the end.
sed '/^[0-9]*% tests passed/,$d' "$log" | grep -vE '^ *[0-9]+/[0-9]+ Test +#.*(Passed|\*\*\*Skipped)|^ *Start +[0-9]+:' || true
reasons=$(awk '/: Skipped$/ { getline; print "  " $0 } sub(/^SKIPPED \[[0-9]+\] /, "") { print "  " $0 }' "$build/Testing/Temporary/LastTest.log" | sort | uniq -c)
if [[ -n "$reasons" ]]; then
  echo "Skipped tests, by reason (count first):"
  echo "$reasons"
fi
sed -n '/^[0-9]*% tests passed/,$p' "$log"
exit $status
