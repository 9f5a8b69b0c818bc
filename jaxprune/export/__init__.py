"""Models as files that other runtimes run: ONNX, OpenVINO and StableHLO, checked against the model.

`export` joins the parts. `programs` says what a file computes, `lowering` turns a traced program into an ONNX `graph`
by the tables in `primitives` and `functions`, `runtimes` runs files, `check` compares them with the model, `quantise`
makes int8, `script` is the program written beside a file. Nothing here trains, and nothing here needs PyTorch. The
commands are `jaxprune export` and `jaxprune precision`.
"""

__all__ = ["check", "export", "precisions", "programs", "quantise", "runtimes"]
