"""Steering the selected sites with one number a step: what DropoutScheduler and AdaptiveDropout share."""

from __future__ import annotations

from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_reg.callbacks._dropout import DropoutCallback, look_at_validation, unwatch_steps, watch_steps
from lightning_reg.dropout.engine import SiteEngine
from lightning_reg.dropout.report import DropoutReport, some
from lightning_reg.dropout.selection import SelectSites, check_select_sites, select_sites
from lightning_reg.dropout.settings import Compiled, RateInEval, check_settings
from lightning_reg.dropout.sites import candidates
from lightning_reg.hosts.steps import OptimizerSteps

__all__ = ["InEval", "SiteCallback"]

#: What to do about a selected site whose module is in evaluation mode while training.
InEval = Literal["warn", "train", "keep"]


class SiteCallback(DropoutCallback):
    """Private base: one number a step, absolute or relative, for the sites of one selection."""

    select: SelectSites
    relative: bool
    name: str
    _by_depth: bool = False
    _engine: SiteEngine | None = None
    _steps: OptimizerSteps | None = None

    def _set_up(
        self,
        select: SelectSites,
        relative: bool,
        name: str | None,
        in_eval: InEval,
        rate_in_eval: RateInEval,
        compile_levels: int,
        compiled: Compiled,
    ) -> None:
        check_select_sites(select)
        check_settings(compile_levels, compiled, rate_in_eval)
        if in_eval not in ("warn", "train", "keep"):
            raise ValueError(f"in_eval={in_eval!r} is not understood; use 'warn', 'train' or 'keep'")
        self.select = select
        self.relative = relative
        self.name = name if name is not None else _group(select)
        self.in_eval: InEval = in_eval
        self.rate_in_eval: RateInEval = rate_in_eval
        self.compile_levels = compile_levels
        self.compiled: Compiled = compiled
        #: What became of the last run's sites.
        self.report: DropoutReport | None = None
        self._saved_steps: list[int] | None = None
        self._number_at_end: float | None = None
        self._validated = False

    def _range(self, total: int | None) -> tuple[float, float]:
        """The lowest and the highest number of the run."""
        raise NotImplementedError

    def _number(self, step: int, total: int | None) -> float:
        """The number for the step that is about to run."""
        raise NotImplementedError

    def _check(self, total: int | None, upper: float) -> None:
        """Refuse, before the run, numbers that it would meet."""

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # a new run; Lightning restores a checkpoint after this
        if stage == "fit" and trainer.global_step == 0:
            self._saved_steps = None

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._let_go()
        chosen = select_sites(pl_module, candidates(pl_module), self.select)
        steps = OptimizerSteps(trainer, self._saved_steps)
        built = max((site.built for site in chosen), default=0.0)
        self._check(steps.total, 1.0 if not self.relative else 1.0 / built if built > 0 else float("inf"))
        self._steps = steps
        self._validated = False
        self.report = None

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        steps = self._steps
        if steps is None:
            return
        if self._engine is None:
            low, high = self._range(steps.total)
            self._engine = SiteEngine(
                pl_module,
                self.select,
                low=low,
                high=high,
                relative=self.relative,
                by_depth=self._by_depth,
                compile_levels=self.compile_levels,
                compiled=self.compiled,
                rate_in_eval=self.rate_in_eval,
                clock_of=lambda site: steps.clock_of(pl_module, site.module),
                name=type(self).__name__,
            )
            self._start(self._engine)
        if self.in_eval == "train":
            self._engine.wake()
        numbers = {clock: self._number(*steps.now(clock)) for clock in self._engine.clocks}
        self._engine.apply(numbers, look=batch_idx == 0)
        watch_steps(trainer, self._engine.watch)
        self._number_at_end = max(numbers.values())
        self._log(trainer, self._number_at_end)

    def _start(self, engine: SiteEngine) -> None:
        """Say, before the first step, what stands in the way."""
        if engine.floats:
            what = "held at their built rate"
            if self.compiled == "levels":
                what = f"run in {self.compile_levels} steps"
            rank_zero_info(f"{some(engine.floats)}: under torch.compile a graph for each value; {what}")
        asleep = engine.asleep()
        if asleep and self.in_eval == "warn":
            lines = dict.fromkeys(f"{site.name.rpartition('.')[0] or 'model'}.train()" for site in asleep)
            rank_zero_warn(
                f"{some([site.name for site in asleep])}: in evaluation mode, where nothing drops at "
                f"any rate; call {some(list(lines), 2)} before `fit`, or pass in_eval='train'"
            )

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._engine is None or not (self._engine.watch.stepped or self._engine.watch.apart):
            return  # an epoch without a step
        self._engine.check()
        before, self.report = self.report, self._engine.report()
        if before is None:
            said = rank_zero_info if self.report.complete else rank_zero_warn
            said(f"{self!r} after the first epoch\n{self.report}")
        elif news := self.report.named.keys() - before.named.keys():
            named = DropoutReport(named={name: self.report.named[name] for name in sorted(news)})
            rank_zero_warn(f"{self!r}\n{named}")
        self._engine.watch.again()

    @override
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._engine is None:
            self._evaluate(trainer, pl_module)
            return
        self._engine.evaluation()
        if not self._validated and self.rate_in_eval == "built" and not self._engine.watch.apart:
            look_at_validation(trainer, pl_module)
        self._validated = True

    @override
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluate(trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Any, pl_module: Any) -> None:
        """Set the rates for an evaluation outside of ``fit``, until its teardown."""
        asked = self._number_at_end if self.rate_in_eval == "scheduled" else self.rate_in_eval
        if asked is None or asked == "built" or trainer.state.fn == "fit":
            return
        relative = self.relative and self.rate_in_eval == "scheduled"
        self._engine = SiteEngine(
            pl_module,
            self.select,
            low=float(asked),
            high=float(asked),
            relative=relative,
            by_depth=self._by_depth and self.rate_in_eval == "scheduled",
            compiled=self.compiled,
            name=type(self).__name__,
        )
        self._engine.apply({None: float(asked)})

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._engine is not None:
            self.report = self._engine.report()

    @override
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        counts = self._steps.counts() if self._steps is not None else self._saved_steps
        if counts is not None:
            checkpoint["lightning_reg_optimizer_steps"] = counts

    @override
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._saved_steps = checkpoint.get("lightning_reg_optimizer_steps")

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        unwatch_steps(trainer)
        super().teardown(trainer, pl_module, stage)

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        unwatch_steps(trainer)
        super().on_exception(trainer, pl_module, exception)

    @override
    def _let_go(self) -> None:
        if self._engine is not None:
            self._engine.release()
        if self._steps is not None:
            self._saved_steps = self._steps.counts()  # for a checkpoint that is saved after the run
            self._steps.close()
        self._engine = self._steps = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_engine", "_steps")}


def _group(select: SelectSites) -> str:
    if isinstance(select, str):
        return "all" if select in ("*", "built") else select
    if isinstance(select, (list, tuple, set, frozenset)):
        return ",".join(_group(form) for form in select)
    return getattr(select, "__name__", type(select).__name__)
