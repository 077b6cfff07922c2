import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from pipeline.inference.export.graph import exported
from pipeline.inference.export.stored import open_program, write_program


class Difference(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - 2 * second


@pytest.mark.parametrize("name", ["x.onnx", "x.pt2"])
def test_a_program_takes_arrays_in_the_order_of_its_inputs(tmp_path, name):
    free = {each: {0: Dim.DYNAMIC} for each in ("first", "second")}
    program = exported(Difference(), (torch.ones(4), torch.ones(4)), free)
    write_program(program, tmp_path / name, ("one", "other"), ("out",))
    first, second = np.arange(3, dtype=np.float32), np.ones(3, np.float32)
    np.testing.assert_array_equal(open_program(tmp_path / name)(first, second), [-2, -1, 0])
