"""The folder of a segmenter: config.json and model.safetensors, in PyTorch's layouts, in half precision."""

from pathlib import Path

import jax
import numpy as np

from dermjax.models import segmenter
from dermjax.models.nnx_tree import Params
from dermjax.weights import safetensors, torch_layout
from dermjax.weights.diffusers import replaced, write_json
from dermjax.weights.tensor_files import open_file, read_json

SHIPPED = Path(__file__).parent / "lesion_segmenter"
FILE = "model.safetensors"


def read(folder: Path) -> tuple[Params, dict]:
    """Returns the parameters, float32, of a segmenter and its config.json.

    Raises:
      UserError: a file is missing or broken, or its tensors are not those of the network.
    """
    tensors, _ = open_file(folder / FILE)
    shapes = segmenter.NETWORK.shapes[0]
    torch_layout.check(torch_layout.expected(shapes), tensors, str(folder / FILE))
    params = torch_layout.from_file(shapes, tensors, f"{folder / FILE}: ", np.float32)
    return jax.tree.map(lambda leaf: leaf.read(), params), read_json(folder / "config.json")


def write(folder: Path, params: Params, config: dict) -> None:
    """Writes a segmenter's folder, complete or not at all."""
    with replaced(folder) as part:
        write_json(part / "config.json", config)
        safetensors.write(part / FILE, torch_layout.to_file(params, np.float16), {})
