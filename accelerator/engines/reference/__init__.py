"""The adapter of the engine that ships with this project, `accelerator.reference`."""

from .adapter import ReferenceAdapter

__all__ = ["ReferenceAdapter"]
