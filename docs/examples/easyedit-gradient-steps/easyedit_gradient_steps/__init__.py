"""Gradient descent as an editing method for EasyEdit, and backups of weights on disk."""

from easyedit_gradient_steps.method import GradientStepsHparams

__all__ = ["GradientStepsHparams"]
