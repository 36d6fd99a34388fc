"""OpenVINO, float32 or int8 by NNCF."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# The packages are an extra, without type stubs.
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stagedkd.deploy.export.graph import exported, input_shape
from stagedkd.deploy.export.onnx import converted
from stagedkd.deploy.export.runtimes import Clips, Operators, Order, Run, sending_nothing

WEIGHTY = {"Convolution": "Conv", "GroupConvolution": "Conv", "MatMul": "MatMul", "FullyConnected": "MatMul"}


class OpenVino:
    """An .xml file with its .bin: weights in float32, where OpenVINO's default would be fp16. It is run in float32,
    where the default is bf16 on CPUs that have it."""

    name: ClassVar[str] = "openvino"
    file: ClassVar[str] = "student.xml"
    extra: ClassVar[str] = "openvino"
    packages: ClassVar[Mapping[str, str]] = {"openvino": "openvino", "nncf": "nncf"}
    int8: ClassVar[bool] = True
    how: ClassVar[str] = (
        "`frames`, uint8 (clips, frames, height, width, 3) RGB, to `logits`. Set INFERENCE_PRECISION_HINT to f32: by "
        "default OpenVINO computes in bf16 where the CPU has it."
    )

    def write(self, order: Order, folder: Path) -> Operators:
        with sending_nothing():
            return self._write(order, folder)

    def _write(self, order: Order, folder: Path) -> Operators:
        import openvino

        if order.card.quantised:  # its reader of torch's programs does not know these operators, that of ONNX does
            model: Any = openvino.Core().read_model(
                converted(order, by_products=True).SerializeToString(deterministic=True)
            )
        else:
            program = exported(order.new_network(), order.card, order.batch, by_products=True)
            model = openvino.convert_model(program)
        model.inputs[0].get_tensor().set_names({"frames"})
        model.outputs[0].get_tensor().set_names({"logits"})
        model.reshape([order.batch or -1, *input_shape(order.card)])
        if order.calibration:
            scaling = 0 if order.card.picture.scaled_to is None else 2
            model = _quantised(model, order.calibration, scaling)
        model.set_rt_info(order.card.text, "student.json")
        openvino.save_model(model, folder / self.file, compress_to_fp16=False)
        return _operators(folder / self.file) if order.int8 else Operators()

    def load(self, folder: Path, threads: int) -> Run:
        compiled = _compiled(folder / self.file, threads)

        def run(clips: Clips) -> Any:
            return np.array(compiled(clips)[0])

        return run


def _compiled(path: Path, threads: int) -> Any:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(str(path), "CPU", settings)


def _quantised(model: Any, calibration: Sequence[Clips], scaling: int) -> Any:
    """The ranges of activations are the least and the largest values of all clips. By NNCF's default they are the means
    of those of each clip, so that clips with larger values are cut off: dark, bright or plain ones. Its correction of
    biases, also a default, made 3-D students worse (docs/use.md).

    Args:
        scaling: the number of matrix products before the network, which scale its pictures and stay in float32.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    products = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"][:scaling]
    ranges = RangeEstimatorParametersSet.MINMAX
    with redirect_stdout(StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(list(calibration)),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=products),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,  # 7 bits of weights: see decision 34
                activations_range_estimator_params=ranges,
                disable_bias_correction=True,
            ),
        )


def _operators(path: Path) -> Operators:
    """The operators of an int8 model as the CPU executes them."""
    int8, float32 = Counter[str](), Counter[str]()
    for node in _compiled(path, 1).get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if kind := WEIGHTY.get(_text(facts, "layerType")):
            (int8 if _text(facts, "runtimePrecision") in ("i8", "u8") else float32)[kind] += 1
    return Operators(dict(int8), dict(float32))


def _text(facts: Any, name: str) -> str:
    return facts[name].astype(str) if name in facts else ""
