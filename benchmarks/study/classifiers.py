"""Pretrained networks under a fresh head: from examples as they are stored to logits."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel


class Classifier(nn.Module):
    """From examples as they are stored to logits.

    Attributes:
        prepare: Stored examples to what the network takes; nothing in it is trained.
        network: What is operated on.
        head: The network's last linear, which starts at random.
    """

    def __init__(self, prepare: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.prepare, self.network = prepare, network

    @property
    def head(self) -> nn.Linear:
        """The linear that makes the logits."""
        head = self.network.get_submodule("head")
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, stored: Tensor) -> Tensor:
        """(n, ...) as stored -> (n, classes)."""
        logits: Tensor = self.network(self.prepare(stored))
        return logits


class MeanPooled(nn.Module):
    """A text model whose mean over real tokens goes into a linear head; token 0 is padding, behind the text.

    Args:
        encoder: Makes hidden states of tokens.
        classes: Width of the head.
        masked: Whether real tokens would see the padding otherwise: those of a decoder do not look ahead.
    """

    def __init__(self, encoder: PreTrainedModel, classes: int, masked: bool = True) -> None:
        super().__init__()
        self.encoder, self.masked = encoder, masked
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, length) int64 -> (n, classes)."""
        real = tokens != 0
        mask = {}
        if self.masked:  # as it is used: of a plainer one the encoder waits for the content
            mask["attention_mask"] = real[:, None, None, :]
        states = self.encoder(input_ids=tokens, **mask).last_hidden_state
        weights = real[..., None].to(states.dtype)
        logits: Tensor = self.head((states * weights).sum(1) / weights.sum(1))
        return logits


class Widen(nn.Module):
    """Stored token numbers as embeddings take them."""

    def forward(self, tokens: Tensor) -> Tensor:
        """int32 -> int64."""
        return tokens.long()
