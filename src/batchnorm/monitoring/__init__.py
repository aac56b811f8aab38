"""What batch norms do while a model trains: to TensorBoard, to a function, or to Lightning's loggers."""

from .monitor import Monitor, monitor
from .record import Record, Trouble

__all__ = ["Monitor", "Record", "Trouble", "monitor"]
