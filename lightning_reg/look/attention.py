"""What stands in the place of a ``MultiheadAttention`` that has lost heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SmallerAttention"]


class SmallerAttention(nn.Module):
    """Attention whose heads have fewer entries, all together, than what it reads and puts out.

    Call it as you call ``torch.nn.MultiheadAttention``. The weights it returns are those of its own heads.

    Args:
        attention: a whole one.
        alive: which of its heads to keep.

    Raises:
        ValueError: keys and values of other widths than the queries, or rows added to them.

    >>> whole = nn.MultiheadAttention(8, 4)
    >>> SmallerAttention(whole, torch.tensor([True, False, False, True])).in_proj.out_features
    12
    """

    def __init__(self, attention: nn.MultiheadAttention, alive: Tensor) -> None:
        super().__init__()
        # what TransformerEncoder asks before it takes a path of its own, which reads weights of a whole one
        self._qkv_same_embed_dim = False
        weight, bias, out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        if weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("an attention with widths of its own, or with rows that it adds, is not cut")
        self.embed_dim, self.head_dim = attention.embed_dim, attention.head_dim
        self.num_heads = int(alive.sum())
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        width = self.num_heads * self.head_dim
        device, dtype = weight.device, weight.dtype
        self.in_proj = nn.Linear(self.embed_dim, 3 * width, bias is not None, device, dtype)
        self.out_proj = nn.Linear(width, self.embed_dim, out.bias is not None, device, dtype)
        split = (3, attention.num_heads, self.head_dim)
        with torch.no_grad():
            self.in_proj.weight.copy_(weight.view(*split, -1)[:, alive].flatten(0, 2))
            self.out_proj.weight.copy_(out.weight.view(-1, *split[1:])[:, alive].flatten(1))
            if bias is not None:
                self.in_proj.bias.copy_(bias.view(split)[:, alive].flatten())
            if out.bias is not None:
                self.out_proj.bias.copy_(out.bias)
        self.train(attention.training)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The bias of the three projections."""
        return self.in_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the heads make of the values, and their weights where they are asked for.

        Raises:
            ValueError: a mask of its own for each head.
        """
        batched = query.dim() == 3
        q, k, v = self._heads(query, 0), self._heads(key, 1), self._heads(value, 2)
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        mask = _added(attn_mask, scores)
        if mask is not None:
            if mask.dim() > 2:
                raise ValueError("attn_mask of three dimensions is for heads of which some are cut; give two")
            scores = scores + mask
        padding = _added(key_padding_mask, scores)
        if padding is not None:
            scores = scores + (padding if batched else padding.unsqueeze(0))[:, None, None, :]
        shares = nn.functional.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = (shares @ v).transpose(1, 2).flatten(2)
        result: Tensor = self.out_proj(mixed)
        told = (shares.mean(1) if average_attn_weights else shares) if need_weights else None
        if not batched:
            return result.squeeze(0), None if told is None else told.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), told

    def _heads(self, x: Tensor, which: int) -> Tensor:
        """Return queries, keys or values, ``(batch, heads, length, width)``."""
        if x.dim() != 3:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        rows = self.num_heads * self.head_dim
        weight = self.in_proj.weight.narrow(0, which * rows, rows)
        bias: Tensor | None = self.in_proj.bias
        if bias is not None:
            bias = bias.narrow(0, which * rows, rows)
        split = nn.functional.linear(x, weight, bias).view(x.shape[0], x.shape[1], -1, self.head_dim)
        return split.transpose(1, 2)


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask as what is added to scores; a boolean one is true where nothing is to be seen."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -torch.inf)
