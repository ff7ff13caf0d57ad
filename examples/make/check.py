# SPDX-License-Identifier: Apache-2.0
"""Checks what was made, apart from how it was made: check.py TEXT_FOLDER HELD_OUT_LIST TOKENIZER TOKENS_FOLDER PROMPTS_FOLDER

Exit code 1 and one line for each finding: a prompt that is not valid UTF-8 JSON, too long or too short, or not text of the
works of its own side; a held-out prompt with 40 characters in a row of the training text; token files that do not decode to
the text.
"""
import array
import json
import subprocess
import sys
from pathlib import Path

from tokens import BOS, encoded, split_works

CONTEXT = 512
SHARED_CHARACTERS = 40
EXPECTED = {"train": (2048, 190, 230), "held_out": (48, 48, 64)}


def flat(works):
    return " ".join(work.read_text(encoding="utf-8").replace("\n\n", "\n").replace("\n", " ").strip() for work in works)


def prompt_findings(side, path, text, tokenizer):
    count, shortest, longest = EXPECTED[side]
    prompts = [json.loads(line) for line in path.read_bytes().decode("utf-8", errors="strict").splitlines()]
    if len(prompts) != count or len({p["text"] for p in prompts}) != count:
        yield f"{path}: {len(prompts)} prompts, {len({p['text'] for p in prompts})} of them different; expected {count}"
    lengths = [len(ids) for ids in encoded("".join(p["text"] + "\n" for p in prompts), tokenizer, "id")]
    for prompt, length in zip(prompts, lengths):
        if not shortest <= length <= longest or length + 1 >= CONTEXT:
            yield f"{path}: {prompt['source']}: {length} tokens, not within {shortest} to {longest}"
        if prompt["text"] not in text:
            yield f"{path}: {prompt['source']}: not found in the {side} works"
    print(f"check.py: {path}: {len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all")


def overlap_findings(path, training_text):
    n = SHARED_CHARACTERS
    prompts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    owner = {p["text"][i:i + n]: p["source"] for p in prompts for i in range(len(p["text"]) - n + 1)}
    shared = {training_text[i:i + n] for i in range(len(training_text) - n + 1)} & owner.keys()
    for source in sorted({owner[window] for window in shared}):
        yield f"{path}: {source}: shares {n} characters in a row with the training text"


def token_findings(side, path, works, tokenizer):
    ids = array.array("H", path.read_bytes())
    if sys.byteorder == "big":
        ids.byteswap()
    if not ids or ids[0] != BOS or max(ids) >= 2048:
        yield f"{path}: {len(ids)} tokens, the first {ids[:1]}, the largest {max(ids, default=None)}"
    documents, block = [], []
    for token in [*ids[1:], BOS]:
        if token == BOS:
            documents.append(" ".join(map(str, block)))
            block = []
        else:
            block.append(token)
    done = subprocess.run(["spm_decode", f"--model={tokenizer}", "--input_format=id"],
                          input="".join(d + "\n" for d in documents).encode(), stdout=subprocess.PIPE, check=True)
    decoded = " ".join(done.stdout.decode("utf-8").split("\n")[:-1])
    if decoded != flat(works):
        yield f"{path}: {len(documents)} documents decode to {len(decoded)} characters, not to the {len(flat(works))} of the {side} works"
    print(f"check.py: {path}: {len(ids)} tokens, {len(documents)} documents")


def main():
    text_folder, held_out_list, tokenizer, tokens, prompts = sys.argv[1:6]
    findings = []
    sides = dict(zip(("train", "held_out"), split_works(text_folder, held_out_list)))
    for side, works in sides.items():
        findings += prompt_findings(side, Path(prompts) / f"{side}.jsonl", flat(works), tokenizer)
        findings += token_findings(side, Path(tokens) / f"{side}.u16", works, tokenizer)
    findings += overlap_findings(Path(prompts) / "held_out.jsonl", flat(sides["train"]))
    for finding in findings:
        print(f"check.py: {finding}", file=sys.stderr)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
