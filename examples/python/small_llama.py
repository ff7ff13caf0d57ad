# SPDX-License-Identifier: Apache-2.0
"""What the examples train with: a byte-level Llama of 0.2 M parameters, some text, and an EAGLE-3 draft of one step.

Plain torch, nothing of draftflow. Any other model will do whose decoder layers and final norm are modules.
"""

import json
import math
import pathlib
from typing import Any, List, Tuple

import torch
from torch import nn
from torch.nn import functional as F

VOCAB, HIDDEN, HEADS, LAYERS = 256, 64, 4, 5
TEXT = pathlib.Path(__file__).resolve().parent.parent / "prompts" / "train.jsonl"


def prompts(count: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """`count` beginnings of passages as bytes: input_ids [count, 64], padded on the right, and their attention_mask."""
    with TEXT.open() as lines:
        texts = [json.loads(next(lines))["text"].encode() for _ in range(count)]
    lengths = torch.tensor([48 + 7 * i % 17 for i in range(count)])
    attention_mask = (torch.arange(64)[None, :] < lengths[:, None]).long()
    return torch.tensor([list(text[:64]) for text in texts]) * attention_mask, attention_mask


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions for [..., T, d]."""
    length, width = x.shape[-2:]
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    angles = torch.cat([angles, angles], -1)
    left, right = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Attention(nn.Module):
    def __init__(self, inputs: int = HIDDEN) -> None:
        super().__init__()
        self.qkv = nn.Linear(inputs, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(ahead, -math.inf).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(rows, length, HIDDEN))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.attention, self.mlp_norm, self.mlp = Norm(), Attention(), Norm(), Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class SmallLlama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids [B, T] -> logits [B, T, V]."""
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def train_target(target: SmallLlama, steps: int = 60) -> float:
    """A few steps on the text, so that there is something to learn from it; the last loss."""
    ids, mask = prompts(512)
    optimizer = torch.optim.AdamW(target.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.arange(16 * step, 16 * (step + 1)) % len(ids)
        following = ids[rows].masked_fill(mask[rows] == 0, -100)[:, 1:]
        loss = F.cross_entropy(target(ids[rows])[:, :-1].flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss)


class Draft(nn.Module):
    """EAGLE-3's draft: fc over the target's layers, one decoder layer over it and the next token's embedding, a head."""

    def __init__(self, target: SmallLlama) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding.from_pretrained(target.embed_tokens.weight.detach().clone())
        self.fc = nn.Linear(3 * HIDDEN, HIDDEN, bias=False)
        self.input_norm, self.hidden_norm, self.mlp_norm, self.norm = Norm(), Norm(), Norm(), Norm()
        self.attention, self.mlp = Attention(2 * HIDDEN), Mlp()
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.lm_head.load_state_dict(target.lm_head.state_dict())

    def forward(self, input_ids: torch.Tensor, aux_hidden_state: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T] and the target's layers at them [B, T, 3H] -> logits [B, T, V] of the next token but one."""
        g = self.fc(aux_hidden_state)
        embedded = self.embed_tokens(shifted(input_ids))
        x = g + self.attention(torch.cat([self.input_norm(embedded), self.hidden_norm(g)], -1))
        x = x + self.mlp(self.mlp_norm(x))
        return self.lm_head(self.norm(x))

    def trainable(self) -> List[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def shifted(x: torch.Tensor) -> torch.Tensor:
    """[B, T, ...] moved left by one token; zeros in the last place."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


def draft_loss(draft: nn.Module, head: nn.Linear, batch: Any) -> Tuple[torch.Tensor, int, int]:
    """Of a draftflow.Batch: the sum of the losses, at how many positions, and at how many draft and target choose alike."""
    mask = batch["loss_mask"].bool() & shifted(batch.mask())  # the last token of a row has no successor
    with torch.no_grad():
        target = head(shifted(batch["hidden_state"].float())).softmax(-1)
    logits = draft(batch["input_ids"], batch["aux_hidden_state"].float())
    loss = -(target * logits.log_softmax(-1)).sum(-1)
    alike = target.argmax(-1) == logits.argmax(-1)
    return loss[mask].sum(), int(mask.sum()), int(alike[mask].sum())
