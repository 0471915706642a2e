"""The weights of a graph that `Graph` wrote, by name, without the rest of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

__all__ = ["stored"]


def stored(path: Path) -> dict[str, np.ndarray]:
    """name -> array, mapped from the data file where it lies there. Raises OSError or ValueError."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own types, which depend on its implementation
        raise ValueError(f"{path.name} is no graph: {error}") from error
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            found[tensor.name] = onnx.numpy_helper.to_array(tensor)
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        file, offset = path.parent / where["location"], int(where["offset"])
        found[tensor.name] = np.memmap(file, dtype, "r", offset, tuple(tensor.dims))
    return found
