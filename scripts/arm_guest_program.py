"""Runs inside the emulated Python of arm_guest.py: a model in ncnn, MNN or ONNX Runtime, one thread, some inferences.

arm_guest_program.py ncnn|mnn|onnxruntime PRECISION MODEL IN.npy OUT.npy REPEAT    writes the last output
arm_guest_program.py blobs PARAM BIN IN.npy OUT.json                   largest absolute value of what ncnn's layers read
arm_guest_program.py tool NAME ARGUMENT...                             MNN's own converter (`mnnconvert`) or `mnnquant`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Dispatches on the first argument; imports only what that one needs."""
    what, *rest = sys.argv[1:]
    if what == "tool":
        import _tools

        run = _tools.mnnconvert if rest[0] == "mnnconvert" else _tools.mnnquant
        run(rest)
    elif what == "blobs":
        find_ranges(*rest)
    else:
        infer(what, *rest)


def infer(peer: str, precision: str, model: str, source: str, target: str, repeat: str) -> None:
    """Loads the model once and runs it `repeat` times."""
    import numpy as np

    runners = {"ncnn": ncnn_runner, "mnn": mnn_runner, "onnxruntime": ort_runner}
    run = runners[peer](model, precision, np.load(source))
    for _ in range(int(repeat)):
        found = run()
    np.save(target, np.asarray(found, dtype=np.float32))


def ncnn_runner(model: str, precision: str, data: Any) -> Callable[[], Any]:
    """A function that runs one inference of `model`.param and `model`.bin."""
    import ncnn
    import numpy as np

    net = load_ncnn(model + ".param", model + ".bin", precision)
    image = ncnn.Mat(data[0]).clone()

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        return np.array(extractor.extract("out0")[1])[None]

    return run


def load_ncnn(param: str, weights: str, precision: str) -> Any:
    """A net on one thread; float32 switches every half-precision path off, the others leave ncnn's own defaults."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    if precision == "fp32":
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(param) or net.load_model(weights):
        sys.exit(f"ncnn cannot load {param}")
    return net


def mnn_runner(model: str, precision: str, data: Any) -> Callable[[], Any]:
    """A function that runs one inference of an .mnn file in a session, the output as MNN stores it converted back."""
    import MNN
    import numpy as np

    interpreter = MNN.Interpreter(model)
    low = {"fp32": "high", "fp16": "low", "int8": "low"}[precision]
    session = interpreter.createSession({"numThread": 1, "precision": low, "backend": "CPU"})
    taken, given = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    kind = MNN.Tensor_DimensionType_Caffe
    image = MNN.Tensor(data.shape, MNN.Halide_Type_Float, np.ascontiguousarray(data), kind)
    result = MNN.Tensor(given.getShape(), MNN.Halide_Type_Float, np.zeros(given.getShape(), np.float32), kind)

    def run() -> Any:
        taken.copyFrom(image)
        interpreter.runSession(session)
        given.copyToHostTensor(result)
        return np.array(result.getNumpyData(), copy=True)

    return run


def ort_runner(model: str, precision: str, data: Any) -> Callable[[], Any]:
    """A function that runs one inference of an ONNX file, whose own types are its precision."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: data}
    return lambda: session.run(None, feed)[0]


def find_ranges(param: str, weights: str, source: str, target: str) -> None:
    """Largest absolute value of each blob that a convolution or inner product reads, over the images of `source`."""
    import ncnn
    import numpy as np

    net = load_ncnn(param, weights, "fp32")
    net.opt.lightmode = False
    words = [line.split() for line in Path(param).read_text(encoding="ascii").splitlines()]
    wanted = {line[4] for line in words[2:] if line[0] in ("Convolution", "ConvolutionDepthWise", "InnerProduct")}
    ranges = dict.fromkeys(sorted(wanted), 0.0)
    for image in np.load(source):
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)).clone())
        for name in ranges:
            found = float(np.abs(np.array(extractor.extract(name)[1])).max())
            ranges[name] = max(ranges[name], found)
    Path(target).write_text(json.dumps(ranges), encoding="ascii")


if __name__ == "__main__":
    main()
