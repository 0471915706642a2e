"""The weights of a graph that `Graph` wrote, by name, without the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

__all__ = ["Stored", "stored"]


class Stored(Mapping[str, np.ndarray]):
    """name -> array. Each is mapped anew when it is asked for: what nobody holds any more takes no memory."""

    def __init__(self, arrays: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def stored(path: Path) -> Stored:
    """A graph's weights, mapped from the data file where they lie there. Raises OSError or ValueError."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own types, which depend on its implementation
        raise ValueError(f"{path.name} is no graph: {error}") from error
    return Stored({tensor.name: partial(_array, tensor, path.parent) for tensor in model.graph.initializer})


def _array(tensor: Any, folder: Path) -> np.ndarray:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(folder / where["location"], dtype, "r", int(where["offset"]), tuple(tensor.dims))
