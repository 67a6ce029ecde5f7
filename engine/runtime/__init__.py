"""The offline API: sessions, model runners."""

from engine.runtime.session import Session, TensorInfo

__all__ = ["Session", "TensorInfo"]
