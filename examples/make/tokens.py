# SPDX-License-Identifier: Apache-2.0
"""Text to token files: tokens.py TEXT_FOLDER HELD_OUT_LIST TOKENIZER OUT_FOLDER

Writes OUT_FOLDER/{train,held_out}.u16: little-endian uint16 token ids, every document after one bos. Works follow each other by name.
"""
import array
import subprocess
import sys
from pathlib import Path

BOS = 1


def names_in(path):
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def split_works(text_folder, held_out_list):
    """The texts of the training works and of the held-out works, each sorted by name."""
    held_out = set(names_in(held_out_list))
    works = sorted(Path(text_folder).glob("*.txt"))
    missing = held_out - {work.stem for work in works}
    if missing:
        sys.exit(f"tokens.py: {held_out_list} names {', '.join(sorted(missing))}, not among the works in {text_folder}")
    return [w for w in works if w.stem not in held_out], [w for w in works if w.stem in held_out]


def encoded(text, tokenizer, output_format):
    """One list of fields a line of text. Lines are encoded apart; as no piece spans a space, that equals encoding them joined by one."""
    done = subprocess.run(["spm_encode", f"--model={tokenizer}", f"--output_format={output_format}"],
                          input=text.encode("utf-8"), stdout=subprocess.PIPE, check=True)
    lines = [line.split(" ") if line else [] for line in done.stdout.decode("utf-8").split("\n")[:-1]]
    if len(lines) != text.count("\n"):
        sys.exit(f"tokens.py: spm_encode answered {len(lines)} lines to {text.count(chr(10))}")
    return lines


def stream_of(text, tokenizer):
    ids = array.array("H", [BOS])
    for line in encoded(text, tokenizer, "id"):
        ids.extend([int(field) for field in line] if line else [BOS])
    return ids


def main():
    text_folder, held_out_list, tokenizer, out = sys.argv[1:5]
    for name, works in zip(("train", "held_out"), split_works(text_folder, held_out_list)):
        ids, size = array.array("H"), 0
        for work in works:
            text = work.read_text(encoding="utf-8")
            ids.extend(stream_of(text, tokenizer))
            size += len(text.encode("utf-8"))
        if sys.byteorder == "big":
            ids.byteswap()
        part = Path(out) / f"{name}.u16.part"  # renamed when whole: a training run may be reading the old one
        part.write_bytes(ids.tobytes())
        part.rename(Path(out) / f"{name}.u16")
        print(f"tokens.py: {name}: {len(works)} works, {len(ids)} tokens, {size} bytes of text, {size / len(ids):.3f} bytes a token")


if __name__ == "__main__":
    main()
