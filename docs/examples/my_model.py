"""A model: any nn.Module, made of the data. grokfast run quick --model my_model:Net"""

import torch
from torch import Tensor, nn

from grokfast.tasks import Data


class Net(nn.Module):
    """Embeddings of all tokens, side by side, one hidden layer with dropout, logits [B, n_answers]."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.embedding = nn.Embedding(data.n_tokens, 16)
        self.hidden = nn.Linear(16 * data.seq_len, 64)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(64, data.n_answers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T], int64."""
        x = self.embedding(tokens).flatten(1)
        return self.out(self.dropout(torch.relu(self.hidden(x))))
