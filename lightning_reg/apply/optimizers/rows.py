"""The rows of the registry: torch's optimizers and those of other packages, which are not imported."""

from __future__ import annotations

from dataclasses import replace

from torch.optim import Optimizer

from lightning_reg.apply.optimizers.facts import Facts, Group, Metric, Row, State, add_row
from lightning_reg.apply.optimizers.metrics import (
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    asgd,
    lamb,
    lamb_as_published,
    note_asgd,
    radam,
    rmsprop,
    rmsprop_tf,
    sgd,
    sparse_adam,
)

__all__ = ["LOMO", "LOOKAHEAD", "ORTHOGONAL", "SCHEDULE_FREE"]

# --- reasons, each the end of a sentence about one optimizer ------------------------------------------------

_SIGNS = "it steps by the sign of its momentum, so no weight has a step per unit of gradient"
ORTHOGONAL = "it makes its steps orthogonal, so no weight has a step per unit of gradient"
_ROTATED = "it steps in rotated coordinates, so no weight has a step of its own"
_CAUTIOUS = "caution leaves out some weights at each step and lengthens the steps of the rest"
_TRUST = "it scales its steps by trust ratios that its state does not hold"
_PROJECTED = "it projects the steps of matrices, so no weight has a step per unit of gradient"
_ROUNDED = "it rounds its state after the step, so the step that it took is no longer known"
_HESSIAN = "it takes second derivatives of the loss, which know nothing of what is added to a gradient"
_UNCORRECTED = "with adam_debias its first steps are shorter than its state tells"
_CLIPPED = "it clips the gradients inside its step, so the strength would count for more than it says"

SCHEDULE_FREE = Facts(
    metric="its parameters are a point between two averages",
    rate="its parameters are a point between two averages, and it takes back what is changed there",
    placed="its parameters are a point between two averages, and it takes back what is changed there",
)
LOOKAHEAD = Facts(
    metric="every few steps it goes back towards slower weights, which are not exactly zero",
    placed="every few steps it goes back towards slower weights, which are not in the set",
)
_AVERAGED = "it computes its weights anew from its sums at each step, and takes back what is changed in them"
_DUAL_AVERAGED = Facts(metric=_AVERAGED, rate=_AVERAGED, placed=_AVERAGED)
_SCALED = "its weights are a reference and its sums times a scale that grows, and so is what is changed there"
_LOMO = "it steps inside the backward pass"
LOMO = Facts(metric=_LOMO, rate=_LOMO, placed=_LOMO, gradient=_LOMO)


_SGD = Facts(sgd, uniform=True)


def _sgd(optimizer: Optimizer, group: Group) -> Facts:
    if float(group["momentum"]) >= 1.0:
        return Facts(f"momentum={group['momentum']} sums its steps without end, so none has a size")
    return _SGD


def _if_plain(metric: Metric, uniform: bool = False, **refused: str) -> Row:
    """A metric that holds unless one of these options of a group is on."""
    plain = Facts(metric, uniform)

    def row(optimizer: Optimizer, group: Group) -> Facts:
        reason = next((text for option, text in refused.items() if group.get(option)), None)
        return plain if reason is None else Facts(reason)

    return row


def _trusted(plain: Metric, uniform: bool = False) -> Row:
    """Timm's LARS and LAMB: trust ratios only beside weight decay, or where they are asked for."""

    def row(optimizer: Optimizer, group: Group) -> Facts:
        if group["weight_decay"] or group.get("always_adapt"):
            # a decay of its own is multiplied by the ratio too
            return Facts(_TRUST, rate=Facts.rate if group.get("decoupled_decay") else _TRUST)
        if group.get("max_grad_norm") is not None:
            return Facts(_CLIPPED)
        if group.get("caution"):
            return Facts(_CAUTIOUS)
        if not group.get("bias_correction", True) or not group.get("grad_averaging", True):
            return Facts("without bias_correction and grad_averaging its step is not known")
        return Facts(plain, uniform)

    return row


def _adamp(optimizer: Optimizer, group: Group) -> Facts:
    if group["delta"] > 0 and any(parameter.dim() > 1 for parameter in group["params"]):
        return Facts(_PROJECTED)
    if group.get("caution") or group.get("cautious"):
        return Facts(_CAUTIOUS)
    if group.get("adanorm") or group.get("use_gc") or group.get("adam_debias"):
        return Facts()
    return Facts(adam)


def _adabelief(optimizer: Optimizer, group: Group) -> Facts:
    if getattr(optimizer, "_rectify", False) or group.get("adanorm") or group.get("adam_debias"):
        return Facts()
    return Facts(adabelief)


def _lamb(optimizer: Optimizer, group: Group) -> Facts:
    rate = Facts.rate if group.get("weight_decouple") else _TRUST
    if group["weight_decay"] and rate is _TRUST:
        return Facts(_TRUST, rate=rate)
    if group.get("rectify") or group.get("adanorm") or group.get("adam_debias") or group.get("adam"):
        return Facts(rate=rate)
    if getattr(optimizer, "pre_norm", False):
        return Facts(_CLIPPED, rate=rate)
    # torch_optimizer's corrects the biases where it is asked to, the other never does
    debias = getattr(optimizer, "debias", False) is True
    return Facts(lamb if debias else lamb_as_published, rate=rate)


def _muon(optimizer: Optimizer, group: Group) -> Facts:
    """Muon for matrices and, in groups that say so, AdamW for the rest."""
    return Facts(ORTHOGONAL if group["use_muon"] else adam)


def _timm_muon(optimizer: Optimizer, group: Group) -> Facts:
    aside = bool(group.get("use_fallback")) or not group.get("use_muon", True)
    scale = float(group.get("fallback_lr_scale", 1.0))
    if aside:
        return Facts(adam if scale == 1.0 else Facts.metric, rate=lambda g, _: float(g["lr"]) * scale)
    # what it takes for a matrix is known after its first step
    return Facts(ORTHOGONAL, rate=Facts.rate if scale == 1.0 else "its rate depends on fallback_lr_scale")


def _adafactor(optimizer: Optimizer, group: Group) -> Facts:
    if group.get("relative_step") or group["lr"] is None:
        return Facts(_FACTORED, rate="it chooses the size of its steps itself")
    return Facts(_FACTORED)


_FACTORED = "it scales its steps by norms of weights and updates that its state does not hold"


def _asgd_rate(group: Group, state: State) -> float:
    return float(state["eta"] if "eta" in state else group["lr"])


def _adapted(group: Group, state: State) -> float:
    """D-Adaptation and Prodigy: the step that is about to be taken, ``d·lr``."""
    rate = float(group["d"]) * float(group["lr"])
    if group.get("use_bias_correction"):
        beta1, beta2 = (1.0 - float(beta) ** (group["k"] + 1) for beta in group["betas"])
        rate *= beta2**0.5 / beta1
    return rate


_D_ADAPTED = Facts("its steps follow an estimate that still grows", rate=_adapted)


def _fill() -> None:
    """One line for each optimizer, and for those that share its facts."""
    rows: dict[str, Row] = {
        # torch
        "SGD": _sgd,
        "Adam AdamW NAdam": Facts(adam),
        "RAdam": Facts(radam),
        "Adamax": Facts(adamax),
        "Adagrad": Facts(adagrad),
        "Adadelta": Facts(adadelta),
        "RMSprop": Facts(rmsprop),
        "ASGD": Facts(asgd, uniform=True, rate=_asgd_rate, note=note_asgd),
        "Adafactor": _adafactor,
        "Muon": Facts(ORTHOGONAL),
        "SparseAdam": Facts(sparse_adam, gradient="it takes sparse gradients, and this makes them dense"),
        "Rprop": Facts(_SIGNS, rate="its steps grow and shrink apart from the learning rate"),
    }
    for names, row in rows.items():
        for name in names.split():
            add_row(f"torch.{name}", row)
    plain_adam = _if_plain(adam, caution=_CAUTIOUS, clipping_threshold=_CLIPPED)
    others: dict[str, Row] = {
        "timm.AdamWLegacy timm.NAdamW": plain_adam,
        "torch_optimizer.Yogi pytorch_optimizer.Yogi": _if_plain(adam, adam_debias=_UNCORRECTED),
        "timm.SGDW": _if_plain(sgd, uniform=True, caution=_CAUTIOUS),
        "timm.RMSpropTF": _if_plain(rmsprop_tf, caution=_CAUTIOUS),
        "timm.AdaBelief pytorch_optimizer.AdaBelief torch_optimizer.AdaBelief": _adabelief,
        "timm.Lars torch_optimizer.LARS": _trusted(sgd, uniform=True),
        "timm.Lamb": _trusted(adam),
        "torch_optimizer.Lamb pytorch_optimizer.Lamb": _lamb,
        "pytorch_optimizer.LARS": Facts(_TRUST, rate=_TRUST),
        "timm.AdamP pytorch_optimizer.AdamP torch_optimizer.AdamP": _adamp,
        "timm.SGDP pytorch_optimizer.SGDP torch_optimizer.SGDP": Facts(_PROJECTED),
        "timm.Adafactor timm.AdafactorBigVision transformers.Adafactor torch_optimizer.Adafactor "
        "pytorch_optimizer.AdaFactor pytorch_optimizer.CAME": _adafactor,
        "timm.Lion pytorch_optimizer.Lion lion_pytorch.Lion bitsandbytes.Lion bitsandbytes.Lion8bit "
        "pytorch_optimizer.Tiger pytorch_optimizer.SignSGD pytorch_optimizer.EmoLynx": Facts(_SIGNS),
        "timm.Muon": _timm_muon,
        "pytorch_optimizer.Muon muon.MuonWithAuxAdam muon.SingleDeviceMuonWithAuxAdam": _muon,
        "pytorch_optimizer.AdaMuon pytorch_optimizer.AdaGO "
        "pytorch_optimizer.NorMuon pytorch_optimizer.MuonClip pytorch_optimizer.SCION "
        "pytorch_optimizer.SCIONLight pytorch_optimizer.SpectralSphere": Facts(ORTHOGONAL),
        "timm.Kron pytorch_optimizer.Kron pytorch_optimizer.SOAP pytorch_optimizer.Shampoo "
        "pytorch_optimizer.ScalableShampoo torch_optimizer.Shampoo pytorch_optimizer.SPlus "
        "pytorch_optimizer.GaLore": Facts(_ROTATED),
        "torchao.Adam8bit torchao.Adam4bit torchao.AdamFp8 torchao.AdamW8bit torchao.AdamW4bit "
        "torchao.AdamWFp8 bitsandbytes.Adam8bit bitsandbytes.AdamW8bit bitsandbytes.Adagrad8bit "
        "bitsandbytes.RMSprop8bit bitsandbytes.PagedAdam8bit bitsandbytes.PagedAdamW8bit "
        "pytorch_optimizer.FlashAdamW": Facts(_ROUNDED),
        "torchao._AdamW": Facts(adam),
        "prodigyopt.Prodigy pytorch_optimizer.Prodigy dadaptation.DAdaptAdam dadaptation.DAdaptAdan "
        "pytorch_optimizer.DAdaptAdam pytorch_optimizer.DAdaptAdan": _D_ADAPTED,
        "dadaptation.DAdaptLion pytorch_optimizer.DAdaptLion": replace(_D_ADAPTED, metric=_SIGNS),
        "dadaptation.DAdaptSGD dadaptation.DAdaptAdaGrad pytorch_optimizer.DAdaptSGD "
        "pytorch_optimizer.DAdaptAdaGrad timm.MADGRAD pytorch_optimizer.MADGRAD torch_optimizer.MADGRAD "
        "pytorch_optimizer.FTRL torch_optimizer.A2GradExp torch_optimizer.A2GradInc "
        "torch_optimizer.A2GradUni pytorch_optimizer.A2Grad torch_optimizer.AccSGD pytorch_optimizer.AccSGD "
        "pytorch_optimizer.SRMM": _DUAL_AVERAGED,
        "pytorch_optimizer.Ranger": LOOKAHEAD,
        "pytorch_optimizer.Nero": Facts("it normalises the weights after each step"),
        "pytorch_optimizer.Magma": Facts("it leaves out weights at random"),
        # the decay of their own is scaled by the gradients, and their steps are not
        "pytorch_optimizer.AdamS pytorch_optimizer.APOLLO": Facts("its state does not hold its steps"),
        "pytorch_optimizer.Ranger21": Facts(rate="it warms its learning rate up and down inside its step"),
        "pytorch_optimizer.TRAC": Facts(metric=_SCALED, rate=_SCALED),
        "timm.Adahessian torch_optimizer.Adahessian pytorch_optimizer.AdaHessian "
        "pytorch_optimizer.SophiaH": Facts(_HESSIAN, gradient=_HESSIAN, instead="use apply='loss'"),
        "pytorch_optimizer.LOMO pytorch_optimizer.AdaLOMO": LOMO,
    }
    for names, row in others.items():
        for name in names.split():
            add_row(name, row)


_fill()
