# SPDX-License-Identifier: Apache-2.0
"""Passages of the example text: prompts.py TEXT_FOLDER HELD_OUT_LIST TOKENIZER OUT_FOLDER

Writes OUT_FOLDER/train.jsonl (passages spread evenly over the training works) and OUT_FOLDER/held_out.jsonl (passages of the
held-out works that begin with a sentence). A line is {"text": ..., "source": "WORK, word OFFSET"}. No randomness: the same
text gives the same bytes.
"""
import hashlib
import json
import sys
from pathlib import Path

from tokens import encoded, split_works

TRAIN_PASSAGES, TRAIN_SHORTEST, TRAIN_LONGEST = 2048, 190, 230
HELD_OUT_PASSAGES, HELD_OUT_SHORTEST, HELD_OUT_LONGEST = 48, 48, 64
SHARED_CHARACTERS = 40  # a held-out passage that has this many characters in a row in common with the training text is left out


class Document:
    """The words of one chapter or speech, with the number of tokens before each."""

    def __init__(self, work, first_word, lines):
        self.source, self.first_word, self.words, self.tokens_before = work, first_word, [], [0]
        for pieces in lines:
            for piece in pieces:
                if piece.startswith("\u2581"):
                    self.words.append("")
                    self.tokens_before.append(self.tokens_before[-1])
                self.words[-1] += piece.removeprefix("\u2581")
                self.tokens_before[-1] += 1

    def __len__(self):
        return self.tokens_before[-1]

    def word_at(self, token):
        return next(i for i, before in enumerate(self.tokens_before) if before >= token)

    def passage(self, first, shortest, longest):
        """The longest run of whole words from `first` that fits, or None."""
        last = first
        while last < len(self.words) and self.tokens_before[last + 1] - self.tokens_before[first] <= longest:
            last += 1
        if self.tokens_before[last] - self.tokens_before[first] < shortest:
            return None
        return {"text": " ".join(self.words[first:last]), "source": f"{self.source}, word {self.first_word + first}"}

    def sentence_from(self, word):
        while 0 < word < len(self.words) and not self.words[word - 1].rstrip('"\'').endswith((".", "!", "?")):
            word += 1
        return word


def with_bytes_joined(pieces):
    """spm_encode shows a character outside the vocabulary as <0xC3> <0xA1>: put the character back in the first one's place."""
    run, out = bytearray(), []
    for piece in [*pieces, ""]:
        if len(piece) == 6 and piece.startswith("<0x"):
            run.append(int(piece[3:5], 16))
            out.append("")
        else:
            if run:
                out[-len(run)] = run.decode("utf-8")
                run.clear()
            out.append(piece)
    return out[:-1]


def documents_of(work, tokenizer):
    found, block, first_word = [], [], 0
    for pieces in [*encoded(work.read_text(encoding="utf-8"), tokenizer, "piece"), []]:
        if pieces:
            block.append(with_bytes_joined(pieces))
        else:
            found.append(Document(work.stem, first_word, block))
            first_word += len(found[-1].words)
            block = []
    return found


def spread(documents, count, shortest, longest):
    """`count` passages at equal distances over all the tokens; one that would run past its document's end begins earlier."""
    usable = [d for d in documents if len(d) > 2 * longest]
    total, starts, passages = sum(map(len, usable)), [], []
    for i in range(count):
        starts.append((2 * i + 1) * total // (2 * count))
    before, which = 0, 0
    for start in starts:
        while start >= before + len(usable[which]):
            before += len(usable[which])
            which += 1
        document = usable[which]
        word = document.word_at(max(0, min(start - before, len(document) - longest - 16)))
        passage = document.passage(word, shortest, longest)
        if passage is None:
            sys.exit(f"prompts.py: no passage of {shortest} to {longest} tokens from {document.source}, word {word}")
        passages.append(passage)
    return passages


def windows(text):
    return {text[i:i + SHARED_CHARACTERS] for i in range(max(1, len(text) - SHARED_CHARACTERS + 1))}


def shared_windows(candidates, training_text):
    wanted = set().union(*(windows(c["text"]) for c in candidates))
    n = SHARED_CHARACTERS
    return {training_text[i:i + n] for i in range(len(training_text) - n + 1) if training_text[i:i + n] in wanted}


def held_out_candidates(documents, count):
    """For each wanted passage, alternatives in order: the first sentences after its place, in this document or the next."""
    total = sum(map(len, documents))
    for i in range(count):
        start = (2 * i + 1) * total // (2 * count)
        alternatives = []
        for document in documents:
            if 0 <= start < len(document):
                word = document.sentence_from(document.word_at(start))
                while len(alternatives) < 6 and word < len(document.words):
                    passage = document.passage(word, HELD_OUT_SHORTEST, HELD_OUT_LONGEST)
                    if passage:
                        alternatives.append(passage)
                    word = document.sentence_from(word + 1)
            start -= len(document)
        yield alternatives


def held_out_passages(works, training_text, tokenizer):
    """Half from the novel, half from the speeches, none with a long run of characters that the training text has too."""
    novels = [d for w in works if not w.stem.startswith("sotu-") for d in documents_of(w, tokenizer)]
    speeches = [documents_of(w, tokenizer) for w in works if w.stem.startswith("sotu-")]
    each = HELD_OUT_PASSAGES // 2 // len(speeches)
    wanted = list(held_out_candidates(novels, HELD_OUT_PASSAGES - each * len(speeches)))
    for documents in speeches:
        wanted += held_out_candidates(documents, each)
    shared = shared_windows([c for alternatives in wanted for c in alternatives], training_text)
    passages = []
    for alternatives in wanted:
        clean = [c for c in alternatives if not windows(c["text"]) & shared]
        if not clean:
            sys.exit(f"prompts.py: every candidate near {alternatives[0]['source'] if alternatives else 'a held-out work'} "
                     f"shares {SHARED_CHARACTERS} characters with the training text; name other works in held_out.txt")
        passages.append(clean[0])
    return passages


def written(path, passages):
    lines = (json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages)
    path.write_text("".join(lines), encoding="utf-8")
    print(f"prompts.py: {len(passages)} passages in {path}")


def main():
    text_folder, held_out_list, tokenizer, out = sys.argv[1:5]
    training, held_out = split_works(text_folder, held_out_list)
    documents = [d for work in training for d in documents_of(work, tokenizer)]
    passages = spread(documents, TRAIN_PASSAGES, TRAIN_SHORTEST, TRAIN_LONGEST)
    # A stream is trained in the order it comes: mixed, so that no work makes up a stretch of it. By hash: the same anywhere.
    written(Path(out) / "train.jsonl", sorted(passages, key=lambda p: hashlib.sha256(p["text"].encode()).digest()))
    training_text = " ".join(work.read_text(encoding="utf-8").replace("\n", " ") for work in training)
    written(Path(out) / "held_out.jsonl", held_out_passages(held_out, training_text, tokenizer))


if __name__ == "__main__":
    main()
