"""timm imports torchvision, whose PyPI build does not load beside a CPU build of torch.

So declare the operators that it looks for. Where what a file needs is not installed (the extra
``networks``), it is not collected.
"""

from importlib.util import find_spec

import torch

_NEEDS = {
    "test_networks.py": ["timm", "transformers"],
    "test_default_selection.py": ["timm", "transformers"],
    "test_wrapped_selection.py": ["timm", "transformers"],
    "test_accelerate.py": ["accelerate"],
    "test_hf_dropout.py": ["accelerate", "transformers"],
    "test_hf_trainer.py": ["accelerate", "transformers"],
    "test_hf_two_processes.py": ["accelerate", "transformers"],
}
collect_ignore = [file for file, needs in _NEEDS.items() if not all(map(find_spec, needs))]

_library = torch.library.Library("torchvision", "FRAGMENT")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    try:
        _library.define(_schema)
    except RuntimeError:  # a torchvision that loads declares them itself
        break
