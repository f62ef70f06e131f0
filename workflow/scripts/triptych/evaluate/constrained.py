"""Answers out of a closed set, such as all that a fold trains on: greedy, token by token along a prefix tree."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class AnswerTree:
    """All answers that may be given, as a tree of tokens; each ends with the end token.

    Attributes:
        tokens: of the branches of each node (N, B); a node of fewer branches is filled with the end token.
        nodes: that the branches lead to (N, B); what fills a node leads back to itself.
        branches: number of branches of each node (N,).
    """

    tokens: torch.Tensor
    nodes: torch.Tensor
    branches: torch.Tensor

    @classmethod
    def of(cls, answers: Iterable[Sequence[int]], device: torch.device) -> Self:
        """Build the tree of at least one answer, each with its end token."""
        branches: list[dict[int, int]] = [{}]
        end = 0
        for answer in answers:
            node = 0
            for token in answer:
                if token not in branches[node]:
                    branches[node][token] = len(branches)
                    branches.append({})
                node = branches[node][token]
            end = answer[-1]
        width = max(map(len, branches))
        fill = [width - len(found) for found in branches]
        tokens = [[*found, *[end] * left] for found, left in zip(branches, fill, strict=True)]
        nodes = [
            [*found.values(), *[node] * left] for node, (found, left) in enumerate(zip(branches, fill, strict=True))
        ]
        counts = [len(found) for found in branches]
        return cls(*(torch.tensor(part, device=device) for part in (tokens, nodes, counts)))

    def choose(self, logits: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the likeliest branch of each row; nothing waits for the device.

        Args:
            logits: of the next token (R, V).
            at: the node that each row has reached (R,).

        Returns:
            The tokens (R,) and the nodes that they lead to; of a row whose answer has ended, the end again.
        """
        tokens = self.tokens[at]
        filled = torch.arange(tokens.shape[1], device=at.device) >= self.branches[at, None]
        best = logits.gather(1, tokens).masked_fill(filled, -torch.inf).argmax(1, keepdim=True)
        return tokens.gather(1, best)[:, 0], self.nodes[at].gather(1, best)[:, 0]
