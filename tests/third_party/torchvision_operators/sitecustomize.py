"""Declares the operators that torchvision looks for, so that it imports beside a CPU build of torch.

On ``PYTHONPATH``, a new interpreter runs this file before anything else. torchmetrics, and so Lightning,
imports torchvision wherever it is installed.
"""

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    try:
        _library.define(_schema)
    except RuntimeError:  # a torchvision that loads declares them itself
        break
