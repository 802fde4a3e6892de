"""A captioner: attention over a record's tiles and other inputs, an LSTM that attends to them, beam search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

PAD, START, END, UNKNOWN = range(4)
METADATA = "metadata"
State = tuple[Tensor, Tensor]


class Tokens(NamedTuple):
    """What the decoder attends to: values (B, T, width), and where there is none, bool (B, T)."""

    values: Tensor
    empty: Tensor


class Scale(nn.Module):
    """Brings each dimension to mean 0 and deviation 1, with the training data's statistics, and no value beyond 5."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def forward(self, values: Tensor) -> Tensor:
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return ((values - mean) / deviation).clamp(-5, 5)


class Encoder(nn.Module):
    """One token a segment: its vector, its number (so its place in the picture) and its modality; one a word of the
    metadata; self-attention."""

    def __init__(
        self,
        word: nn.Embedding,
        dims: Mapping[str, int],
        segments: Mapping[str, int],
        width: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.word = word
        self.first = nn.Parameter(torch.randn(width) * 0.02)  # a token that is always there
        self.scale = nn.ModuleDict({name: Scale(dim) for name, dim in dims.items()})
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
                for name, dim in dims.items()
            }
        )
        self.place = nn.ParameterDict({name: nn.Parameter(torch.randn(segments[name], width) * 0.02) for name in dims})
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.mix = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, inputs: Mapping[str, tuple[Tensor, Tensor]]) -> Tokens:
        """`inputs`: of each modality vectors (B, S, dim), of the metadata words (B, S); what is there, bool (B, S)."""
        rows = len(next(iter(inputs.values()))[0])
        values, present = [self.first.expand(rows, 1, -1)], [torch.ones(rows, 1, dtype=torch.bool)]
        for name, (given, mask) in inputs.items():
            if name == METADATA:
                values.append(self.word(given))
            else:
                place = torch.arange(given.shape[1]).clamp(max=len(self.place[name]) - 1)  # training may have had fewer
                values.append(self.project[name](self.scale[name](given)) + self.place[name][place])
            present.append(mask)
        empty = ~torch.cat(present, 1)
        return Tokens(self.mix(torch.cat(values, 1), src_key_padding_mask=empty), empty)


class Captioner(nn.Module):
    """Words of a caption, one after the other: an LSTM whose state asks the tokens of the record."""

    def __init__(
        self,
        words: int,
        dims: Mapping[str, int],
        segments: Mapping[str, int],
        width: int = 128,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=PAD)
        self.encoder = Encoder(self.embedding, dims, segments, width, layers, dropout)
        self.start = nn.Linear(width, 2 * width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 4, dropout, batch_first=True)
        self.output = nn.Sequential(
            nn.Linear(2 * width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, words)
        )
        self.dropout = nn.Dropout(dropout)

    def begin(self, tokens: Tokens) -> State:
        """The LSTM's first state (1, B, width), from the token that is always there."""
        hidden, cell = self.start(tokens.values[:, 0]).tanh().chunk(2, -1)
        return hidden[None].contiguous(), cell[None].contiguous()

    def decode(self, tokens: Tokens, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, L, words) of what follows each of `words` (B, L), and the state after the last."""
        hidden, state = self.lstm(self.dropout(self.embedding(words)), state)
        seen, _ = self.attention(hidden, tokens.values, tokens.values, tokens.empty, need_weights=False)
        return self.output(torch.cat((hidden, seen), -1)), state

    def forward(self, inputs: Mapping[str, tuple[Tensor, Tensor]], words: Tensor) -> Tensor:
        """Teacher forcing: logits (B, L - 1, words) of all but the first of the true `words` (B, L)."""
        tokens = self.encoder(inputs)
        logits, _ = self.decode(tokens, words[:, :-1], self.begin(tokens))
        return logits


def loss(logits: Tensor, words: Tensor) -> Tensor:
    """Mean cross-entropy over the true words after the first, in nats."""
    return cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=PAD)


@torch.no_grad()
def beam_search(
    model: Captioner, inputs: Mapping[str, tuple[Tensor, Tensor]], beams: int = 4, longest: int = 40, alpha: float = 0.7
) -> list[list[int]]:
    """Each record's caption of the highest log probability / length ** alpha, of `beams` that are kept at each word."""
    tokens = model.encoder(inputs)
    rows = len(tokens.values)
    hidden, cell = (part.repeat_interleave(beams, 1) for part in model.begin(tokens))
    tokens = Tokens(*(part.repeat_interleave(beams, 0) for part in tokens))
    words = torch.full((rows * beams, 1), START)
    score = torch.full((rows, beams), -torch.inf)
    score[:, 0] = 0  # all beams begin alike: one of them counts
    length = torch.zeros(rows, beams)
    for _ in range(longest):
        done = (words[:, -1] == END) | (words[:, -1] == PAD)
        logits, (hidden, cell) = model.decode(tokens, words[:, -1:], (hidden, cell))
        step = logits[:, -1].log_softmax(-1)
        step[:, [PAD, START, UNKNOWN]] = -torch.inf
        step[done] = -torch.inf
        step[done, PAD] = 0  # a caption that has ended goes on with padding
        total = score[:, :, None] + step.view(rows, beams, -1)
        lengths = length + (~done.view(rows, beams))
        ranked = (total / lengths.clamp(min=1)[:, :, None] ** alpha).flatten(1).topk(beams).indices
        beam, word = ranked // step.shape[1], ranked % step.shape[1]
        score, length = total.flatten(1).gather(1, ranked), lengths.gather(1, beam)
        source = (beam + torch.arange(rows)[:, None] * beams).flatten()
        words = torch.cat((words[source], word.view(-1, 1)), 1)
        hidden, cell = hidden[:, source], cell[:, source]
        if bool(((word == END) | (word == PAD)).all()):
            break
    best = (score / length.clamp(min=1) ** alpha).argmax(1)
    chosen = words.view(rows, beams, -1)[torch.arange(rows), best].tolist()
    return [[word for word in row if word not in (PAD, START, END)] for row in chosen]
