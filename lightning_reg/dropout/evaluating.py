"""Which modules drop in evaluation, too: attention that is handed its rate whatever the mode."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.dropout.calls import is_training, kind_of, name_of, rate_of
from lightning_reg.dropout.running import running
from lightning_reg.select.wrappers import visible_modules

__all__ = ["AlwaysOn"]


class AlwaysOn(TorchFunctionMode):
    """Notes every module that drops while it is in evaluation mode.

    >>> class Attention(nn.Module):
    ...     def forward(self, x):
    ...         return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
    >>> import torch
    >>> net = nn.Sequential(Attention()).eval()
    >>> with AlwaysOn(net) as look:
    ...     _ = net(torch.ones(1, 1, 2, 2))
    >>> look.found
    {'0 (Attention)': 'scaled_dot_product_attention'}
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): path for path, module in reversed(list(visible_modules(root)))}
        #: the module, and the function that it calls
        self.found: dict[str, str] = {}

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if kind_of(name) is not None and is_training(name, args, kwargs) and rate_of(name, args, kwargs) > 0:
            where = running()
            if where is not None and not where.training:
                path = self.names.get(id(where)) or "the root"
                self.found.setdefault(f"{path} ({type(where).__name__})", name)
        return func(*args, **kwargs)
