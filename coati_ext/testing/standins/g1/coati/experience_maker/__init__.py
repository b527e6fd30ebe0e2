from .base import Experience, ExperienceMaker
from .naive import NaiveExperienceMaker

__all__ = ["Experience", "ExperienceMaker", "NaiveExperienceMaker"]
