"""Functions that each answer one question about a model or a layer, and leave it as it was."""

from normsmith.analysis.across_runs import AcrossRuns, across_runs
from normsmith.analysis.batch_jacobian import bn_jacobian, bn_jacobian_trace, bn_vjp
from normsmith.analysis.blocks import ExactBlock, KroneckerBlock
from normsmith.analysis.channels import Maximum, activation_maximum, saliency
from normsmith.analysis.covariate_shift import Shift, covariate_shift
from normsmith.analysis.fisher_blocks import FisherBlocks, fisher_blocks
from normsmith.analysis.natural_step import Fisher, NaturalStep, fisher_matrix, natural_step
from normsmith.analysis.refusals import refusals
from normsmith.analysis.smoothness import Smoothness, smoothness

__all__ = [
    "AcrossRuns",
    "ExactBlock",
    "Fisher",
    "FisherBlocks",
    "KroneckerBlock",
    "Maximum",
    "NaturalStep",
    "Shift",
    "Smoothness",
    "across_runs",
    "activation_maximum",
    "bn_jacobian",
    "bn_jacobian_trace",
    "bn_vjp",
    "covariate_shift",
    "fisher_blocks",
    "fisher_matrix",
    "natural_step",
    "refusals",
    "saliency",
    "smoothness",
]
