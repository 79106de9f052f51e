"""Learn how much to listen to the teacher: knowledge distillation whose weights and temperature are learned."""

__version__ = "0.1.0"
