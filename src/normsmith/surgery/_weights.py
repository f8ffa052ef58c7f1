"""Placing normalized weights: what `ns.weights.place` does, behind the handle of `reparametrize`, with optimizers that follow."""

from typing import cast

from torch import nn

from normsmith.surgery import _optimizers
from normsmith.surgery._coordinates import patched
from normsmith.surgery._examples import first_of, loader_of
from normsmith.surgery._request import Request
from normsmith.surgery.conversion import Row
from normsmith.surgery.reparametrization import Reparametrization
from normsmith.weights.catalog import Settings
from normsmith.weights.place import Placement, place


def place_weights(request: Request) -> Reparametrization:
    """Normalize the weights that a request is for."""
    request.refuse(batches=request.batches, every=request.every, loss=request.loss, process_group=request.process_group)
    request.refuse(moments=None if request.moments == "reset" else request.moments)
    model, said = request.model, cast(Settings, request.options)
    example = None if request.data is None else first_of(loader_of(request.data, None, "reparametrize"), model, "reparametrize")
    held = list(model.named_parameters())
    patches = [_optimizers.Patch(one, [p for _, p in held]) for one in request.optimizers]
    placement = place(model, request.name, where=request.where, data=example, **vars(said))
    patched(patches, held, model)
    handle = Reparametrization(model, _rows(placement), [], model)
    handle.when_undone(placement.undo, *(patch.undo for patch in patches))

    def fold() -> nn.Module:
        before = list(model.named_parameters())
        placement.fold()
        patched([_optimizers.Patch(one, ()) for one in request.optimizers], before, model)
        return model

    handle.can(refresh=None, fold=fold)
    return handle


def _rows(placement: Placement) -> list[Row]:
    found = []
    for row in placement.rows:
        fresh = () if row.reason else (f"{row.rows} rows of {row.fan_in}", row.words)
        found.append(Row(row.layer, row.kind, None if row.reason else placement.name, fresh=fresh, reason=row.reason))
    return found
