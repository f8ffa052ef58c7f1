"""ONNX export of every method in evaluation, run by onnxruntime."""

import io

import pytest
import torch
from helpers import CASES, assert_same, example

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SHAPE = (4, 12, 5, 6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_onnxruntime_gets_the_same(case):
    layer, x = case.make(torch.float32).eval(), example(SHAPE, torch.float32)
    extra = layer.example_inputs(x)
    batch = {0: torch.export.Dim("batch")}
    shapes = {"x": batch, **dict.fromkeys(extra, batch)}
    program = torch.onnx.export(layer, (x,), kwargs=extra, dynamo=True, dynamic_shapes=shapes, verbose=False)
    stored = io.BytesIO()
    program.save(stored)
    session = onnxruntime.InferenceSession(stored.getvalue(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for size in (4, 3):
        x = example((size, *SHAPE[1:]), torch.float32, seed=size)
        extra = layer.example_inputs(x)
        values = dict(zip(names, (t.numpy() for t in (x, *extra.values())), strict=True))
        assert_same(torch.from_numpy(session.run(None, values)[0]), layer(x, **extra), f"output, batch {size}")
