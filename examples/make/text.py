# SPDX-License-Identifier: Apache-2.0
"""Raw package files to plain text: text.py RAW_FOLDER TEXT_FOLDER

Writes TEXT_FOLDER/WORK.txt for every work: one paragraph a line, an empty line between documents (a chapter of a novel;
a speech is one document). See examples/README.md for what is dropped and what is replaced.
"""
import html
import json
import re
import sys
import unicodedata
from pathlib import Path

REPLACED = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-",
    "\u2014": "--", "\u2026": "...", "\u2022": " ", "_": " ",
})
NOT_THE_AUTHORS = re.compile(
    r"\[(?:laughter|applause|missing text|p\.\s*\d+|\d+)\.?\]|\((?:laughter|applause)\.?\)|\[(?:footnote|at this point)[^\]]*\]",
    re.IGNORECASE)
HEADING = re.compile(r"(?:chapter|volume)\s+(?:[0-9]+|[ivxlc]+)\.?|\(end of volume \w+\.\)|the end|finis", re.IGNORECASE)
CHAPTER = re.compile(r"chapter\s+(?:[0-9]+|[ivxlc]+)\.?", re.IGNORECASE)
ORNAMENT = re.compile(r"[\s*]*")


def normalised(paragraph):
    """One line of NFC text with ASCII quotes and dashes, single spaces, no control characters and no emphasis marks."""
    text = unicodedata.normalize("NFC", html.unescape(paragraph))
    text = NOT_THE_AUTHORS.sub(" ", text)
    text = re.sub(r"\b_|_\b|_(?=\W)|(?<=\W)_", "", text)
    text = text.translate(REPLACED)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") else c for c in text)
    return re.sub(r" +", " ", text).strip()


def paragraphs_of(text):
    """Paragraphs are separated by empty lines; headings and ornaments are left out."""
    found = (normalised(block) for block in re.split(r"\n[ \t]*\n", text))
    return [p for p in found if not ORNAMENT.fullmatch(p) and not HEADING.fullmatch(p)]


def novel(path):
    """Chapters of an Austen novel: the title page before the first chapter and any editor's note after the last are dropped."""
    text = path.read_text(encoding="utf-8").split("A NOTE ON THE TEXT")[0]
    chapters = [[]]
    for line in text.split("\n"):
        if CHAPTER.fullmatch(line.strip()):
            chapters.append([])
        else:
            chapters[-1].append(line)
    return [paragraphs_of("\n".join(lines)) for lines in chapters[1:]]


def moby_dick(folder):
    """The chapters and the epilogue; the contents, the etymology and the extracts are not prose and are left out."""
    names = sorted(folder.glob("chapter_*.json"), key=lambda p: int(re.sub(r"\D", "", p.stem))) + [folder / "epilogue.json"]
    return [paragraphs_of(json.loads(name.read_text(encoding="utf-8"))["text"]) for name in names]


def speech(path):
    """One document; a line break is a paragraph where the package has any."""
    text = json.loads(path.read_text(encoding="utf-8"))["text"]
    return [[p for p in (normalised(line) for line in text.split("\n")) if p]]


def works_of(raw):
    for path in sorted(raw.glob("austen-*.txt")):
        yield path.stem, novel(path)
    yield "melville-moby-dick", moby_dick(raw / "moby-dick" / "data")
    for path in sorted((raw / "sotu" / "data").glob("[0-9]*.json")):
        yield "sotu-" + path.stem, speech(path)


def main():
    raw, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    kept = set()
    for name, documents in works_of(raw):
        if not documents or not all(documents):
            sys.exit(f"text.py: {name} has {len(documents)} documents, of which {sum(not d for d in documents)} are empty; "
                     "the package is not the one this script was written for")
        (out / f"{name}.txt").write_text("\n\n".join("\n".join(d) for d in documents) + "\n", encoding="utf-8")
        kept.add(f"{name}.txt")
    for path in out.glob("*.txt"):
        if path.name not in kept:
            path.unlink()
    print(f"text.py: {len(kept)} works in {out}")


if __name__ == "__main__":
    main()
