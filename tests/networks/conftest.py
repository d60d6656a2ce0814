"""timm imports torchvision, whose PyPI build does not load beside a CPU build of torch.

So declare the operators that it looks for.
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
