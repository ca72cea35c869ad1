"""Issues of real repositories, as SWE-bench has them: instances, patches, predictions."""

from fulmen.envs.instances.environment import Instances
from fulmen.envs.instances.instance import Instance, read_instances
from fulmen.envs.instances.predictions import (
    Prediction,
    append_prediction,
    predict,
    read_predictions,
)
from fulmen.envs.instances.task import InstanceTask

__all__ = [
    "Instance",
    "InstanceTask",
    "Instances",
    "Prediction",
    "append_prediction",
    "predict",
    "read_instances",
    "read_predictions",
]
