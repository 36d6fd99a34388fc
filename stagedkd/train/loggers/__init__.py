"""Loggers: TensorBoard, Weights & Biases, MLflow and Trackio, each in its own file.

`sink.py` is the sink of a training. It starts one process (`__main__.py`) that has all loggers, and hands it the
events. So the packages of the loggers, their threads and their environment never meet the training: a logger that
fails or hangs costs a note.
"""
