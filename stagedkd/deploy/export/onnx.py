"""ONNX, run by ONNX Runtime."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# The packages are an extra, without type stubs.
from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from stagedkd.deploy.export.graph import exported
from stagedkd.deploy.export.runtimes import Clips, Operators, Order, Run

WEIGHTY = ("Conv", "Gemm", "MatMul")  # what takes the time
_INT8 = {"QLinearConv": "Conv", "QGemm": "Gemm", "QLinearMatMul": "MatMul", "MatMulInteger": "MatMul"}


class Onnx:
    """An .onnx file with everything in it: preprocessing, weights, and the card as metadata `student.json`."""

    name: ClassVar[str] = "onnx"
    file: ClassVar[str] = "student.onnx"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[Mapping[str, str]] = {
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "onnxruntime": "onnxruntime",
    }
    int8: ClassVar[bool] = True
    how: ClassVar[str] = "`frames`, uint8 (clips, frames, height, width, 3) RGB, to `logits`; ONNX Runtime runs it."

    def write(self, order: Order, folder: Path) -> Operators:
        model = converted(order)
        with TemporaryDirectory() as name:
            if order.calibration:
                model = _quantised(model, order, Path(name))
            _save(model, order, folder / self.file)
            return _operators(folder / self.file, Path(name)) if order.int8 else Operators()

    def load(self, folder: Path, threads: int) -> Run:
        session = _session(folder / self.file, threads)

        def run(clips: Clips) -> Any:
            return session.run(["logits"], {"frames": clips})[0]

        return run


def converted(order: Order, *, by_products: bool = False) -> Any:
    """The model as a protobuf. That of a quantised student computes in bytes. by_products: see `FramesToLogits`."""
    import torch

    program = exported(order.new_network(), order.card, order.batch, operators=True, by_products=by_products)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.onnx.export(
            program, input_names=["frames"], output_names=["logits"], dynamo=True, verbose=False, optimize=True
        )
    model = made.model_proto
    _drop_zero_points(model)
    return model


def _drop_zero_points(model: Any) -> None:
    """Remove zero points of weights that are all 0, which is their default. torch's exporter shares them between
    layers, and OpenVINO 2026.4 runs layers that share one in float32 after a reshape (docs/findings.md)."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored or len(node.input) < 3:
            continue
        if node.input[2] in stored and not numpy_helper.to_array(stored[node.input[2]]).any():
            node.input.pop()
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for name, tensor in stored.items() if name not in used]:
        model.graph.initializer.remove(tensor)


def _save(model: Any, order: Order, path: Path) -> None:
    """Write a model with the card. The exporter's own fields, which hold paths and names of this machine, are
    removed."""
    import onnx

    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (model.graph, *model.functions):
        del part.metadata_props[:]
        for item in (*part.node, *part.value_info, *getattr(part, "input", ()), *getattr(part, "output", ())):
            for entry in (item,) if not isinstance(item, str) else ():
                del entry.metadata_props[:]
                entry.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    onnx.helper.set_model_props(model, {"student.json": order.card.text})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Reader:
    """Gives the clips of the calibration, as ONNX Runtime asks for them."""

    def __init__(self, clips: Sequence[Clips]) -> None:
        self.left: Iterator[Clips] = iter(clips)

    def get_next(self) -> Any:
        clip = next(self.left, None)
        return None if clip is None else {"frames": clip}


def _quantised(model: Any, order: Order, folder: Path) -> Any:
    """Quantise a float model by the order's clips."""
    import onnx

    plain, quantised = folder / "float.onnx", folder / "int8.onnx"
    _save(model, order, plain)
    _quantise(plain, quantised, order.calibration)
    return onnx.load(quantised)


def _quantise(plain: Path, quantised: Path, calibration: Sequence[Clips]) -> None:
    """Weights become int8 by channel, activations uint8: by ONNX Runtime's default, int8, most 3-D convolutions of a
    residual network stay in float without a word."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(_Reader, CalibrationDataReader):
        pass

    prepared = plain.with_name("prepared.onnx")
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        quantised,
        Reader(calibration),
        op_types_to_quantize=[*WEIGHTY, "Add", "Relu", "Concat"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )


def _session(path: Path, threads: int, optimised: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _operators(path: Path, folder: Path) -> Operators:
    """The operators of an int8 model as ONNX Runtime executes them, after its own optimisation."""
    import onnx

    optimised = folder / "optimised.onnx"
    _session(path, 1, optimised)
    types = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    int8, float32 = Counter[str](), Counter[str]()
    for kind, count in types.items():
        bare = kind.removeprefix("Fused")
        if kind in _INT8:
            int8[_INT8[kind]] += count
        elif bare in WEIGHTY:
            float32[bare] += count
    return Operators(dict(int8), dict(float32))
