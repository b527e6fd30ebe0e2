from .base import ExperienceBuffer
from .naive import NaiveExperienceBuffer

__all__ = ["ExperienceBuffer", "NaiveExperienceBuffer"]
