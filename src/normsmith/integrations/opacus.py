"""Opacus: `ModuleValidator.fix` with our conversions, and refusals of what cannot be private."""

from typing import Any

from torch import nn

from normsmith.errors import DependencyError, OptionError
from normsmith.methods.batch import BatchNorm
from normsmith.methods.catalog import CATALOG
from normsmith.methods.frozen import FrozenNorm
from normsmith.methods.group import GroupNorm

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm)


def register_with_opacus(*, frozen: bool = False) -> None:
    """Have `opacus.validators.ModuleValidator.fix(model)` replace batch norms by ours, in the place of its own fixer.

    - By default by `ns.GroupNorm` with the weight, bias and eps of the batch norm, which Opacus's own loses; `fix(model, num_groups=8)`
      says how many groups.
    - `frozen=True`, or `fix(model, frozen=True)`: by `ns.FrozenNorm` with the running statistics too. It computes what the model did in
      evaluation, but is private only if the statistics come from data that need not be kept so. Weight and bias no longer learn: Opacus
      refuses layers with buffers that do.

    Our methods that mix the samples of a batch, or hold buffers that they move, are refused by `ModuleValidator.validate` from now on.
    Those without batch statistics, such as `ns.GroupNorm`, need nothing: Opacus takes their gradients per sample by torch.func.
    """
    try:
        from opacus.validators import register_module_fixer, register_module_validator
        from opacus.validators.errors import ShouldReplaceModuleError
    except ImportError as error:
        raise DependencyError(f"register_with_opacus expects opacus: got {error}; pip install opacus") from None

    def fix(module: Any, **options: Any) -> nn.Module:
        return _replacement(module, options.get("num_groups"), options.get("frozen", frozen))

    def validate(module: Any) -> list[Exception]:
        if getattr(module, "frozen", False):
            return []
        return [
            ShouldReplaceModuleError(
                f"{type(module).__name__} uses statistics of the batch, so a sample's output depends on the others and cannot be private: "
                "use GroupNorm"
            )
        ]

    register_module_fixer(_BATCH_NORMS)(fix)
    register_module_validator([entry.load() for entry in CATALOG.values() if entry.batch_dependent])(validate)


def _replacement(norm: Any, num_groups: int | None, frozen: bool) -> nn.Module:
    if frozen and num_groups is not None:
        raise OptionError("ModuleValidator.fix expects either num_groups or frozen=True: got both; leave one out")
    where = {"device": norm.weight.device, "dtype": norm.weight.dtype}  # Opacus asks only for layers with parameters
    if not frozen:
        groups: dict[str, Any] = {} if num_groups is None else {"num_groups": num_groups}
        new: nn.Module = GroupNorm(norm.num_features, eps=norm.eps, **groups, **where)
    elif norm.running_mean is None:
        raise OptionError(
            "ModuleValidator.fix expects running statistics to freeze: got a batch norm without them; leave frozen out"
        )
    else:
        new = FrozenNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, **where)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            getattr(new, key).copy_(getattr(norm, key))
    new.weight, new.bias = norm.weight, norm.bias
    if frozen:
        new.requires_grad_(False)
    return new.train(norm.training)
