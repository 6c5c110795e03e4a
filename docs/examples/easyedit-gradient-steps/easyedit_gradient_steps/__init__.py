"""Gradient descent as an editing method for EasyEdit, and backups of weights on disk."""

import easyedit_mend_parallel  # noqa: F401  first: it looks for plugins, and finds this one whole
from easyedit_gradient_steps.method import GradientStepsHparams

__all__ = ["GradientStepsHparams"]
