"""What a model and a pass through it take, by arithmetic alone: bytes of weights and memories, peaks, operations."""

from anchorlens.planner.costs import memory_bytes, operations, operations_with_gradient, weight_bytes
from anchorlens.planner.peaks import (
    ENOUGH,
    MOST,
    SHARE,
    compression,
    demonstrating,
    differentiating,
    extraction,
    isolation,
    preparing,
    reading,
    remembering,
    reweighting,
    rows,
    saliency,
)
from anchorlens.planner.shapes import BYTES, Shape, ShapeError, of_config, of_model

__all__ = [
    "BYTES",
    "ENOUGH",
    "MOST",
    "SHARE",
    "Shape",
    "ShapeError",
    "compression",
    "demonstrating",
    "differentiating",
    "extraction",
    "isolation",
    "memory_bytes",
    "of_config",
    "of_model",
    "operations",
    "operations_with_gradient",
    "preparing",
    "reading",
    "remembering",
    "reweighting",
    "rows",
    "saliency",
    "weight_bytes",
]
