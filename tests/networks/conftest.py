"""timm imports torchvision, whose PyPI build does not load beside a CPU build of torch.

So declare the operators that it looks for. Where timm and transformers are not installed (the extra
``networks``), there is nothing to collect here.
"""

from importlib.util import find_spec

import torch

collect_ignore_glob = [] if find_spec("timm") and find_spec("transformers") else ["test_*.py"]

_library = torch.library.Library("torchvision", "FRAGMENT")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    try:
        _library.define(_schema)
    except RuntimeError:  # a torchvision that loads declares them itself
        break
