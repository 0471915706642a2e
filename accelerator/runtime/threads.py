"""How many threads PyTorch's operators use, which is a setting of the process."""

from __future__ import annotations

__all__ = ["torch_threads"]


def torch_threads(count: int | None = None) -> int:
    """PyTorch's threads within an operator in this process, after setting them if a count is given."""
    import torch

    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()
