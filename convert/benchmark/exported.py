"""Writes the ONNX file that a runtime's contestant measures: `python -m ... '[JOB, KEEP RATE, INT8, PATH]'`."""

import json
import sys
from pathlib import Path

from jaxprune.config import Card
from jaxprune.export.export import Settings, onnx_model
from jaxprune.export.quantise import quantised
from jaxprune.models import topk

from ..mapping import to_flax
from ..random_checkpoint import random_state
from .job import Job


def main() -> None:
    """Exports the job's model for a batch of its size. Ranges of int8 are those of the job's own input."""
    order, keep_rate, int8, path = json.loads(sys.argv[1])
    job = Job(**order)
    config = job.config()
    model = to_flax(random_state(config, seed=job.seed), config)
    card = Card(model=config, mean=0.0, std=0.5, activation="sigmoid", source="random weights", trained=False)
    settings = Settings(format="onnx", batch=job.batch)
    graph = onnx_model(model, topk(model, keep_rate), card=card, settings=settings, facts={})
    if int8:
        graph = quantised(graph, {"mel": job.mel()}, batch=job.batch)
    Path(path).write_bytes(graph.SerializeToString())


if __name__ == "__main__":
    main()
