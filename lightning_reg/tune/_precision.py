"""The precision that a Trainer trains in, for what is measured without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from lightning_reg.tune._loss import Loss, loss_of
from lightning_reg.tune._quiet import quiet

__all__ = ["TrainingPrecision"]

#: Those that convert the module and what it reads; autocast leaves both as they are.
_CONVERTING = ("64-true", "16-true", "bf16-true")
#: Options of a Trainer that its precision depends on.
_DECIDING = ("accelerator", "devices", "num_nodes", "plugins", "precision", "strategy")


class TrainingPrecision:
    """What a Trainer converts at the start of a run and at every batch, done without it.

    Args:
        options: of the Trainer.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._plugin: Any = None
        if not any(name in options for name in ("plugins", "precision", "strategy")):
            return  # 32-true
        from lightning.pytorch import Trainer

        deciding = {name: options[name] for name in _DECIDING if name in options}
        with quiet():
            plugin = Trainer(logger=False, enable_checkpointing=False, **deciding).precision_plugin
        self._plugin = plugin if plugin.precision in _CONVERTING else None

    def convert_(self, module: nn.Module) -> None:
        """Give the module's floating tensors the dtype that they are trained in."""
        if self._plugin is not None:
            self._plugin.convert_module(module)

    def loss(self, module: nn.Module) -> Loss:
        """Return the module's ``training_step`` as a loss, on batches of that dtype.

        Raises:
            TypeError: it has none.
        """
        plain, plugin = loss_of(module, None), self._plugin
        if plugin is None:
            return plain

        def converted(module: Any, batch: Any) -> Tensor:
            with plugin.tensor_init_context():
                return plain(module, plugin.convert_input(batch))

        return converted

    def inputs(self, batches: Any) -> Any:
        """Return the batches with that dtype."""
        return batches if self._plugin is None else _Converted(batches, self._plugin)


class _Converted:
    """Batches that are converted as they are gone through."""

    def __init__(self, batches: Iterable[Any], plugin: Any) -> None:
        self.batches, self.plugin = batches, plugin

    def __iter__(self) -> Iterator[Any]:
        return (self.plugin.convert_input(batch) for batch in self.batches)
