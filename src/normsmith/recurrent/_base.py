"""What LSTM and GRU share: parameters under torch's names, how they begin, and the way through layers and directions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from normsmith.errors import InputError, OptionError
from normsmith.recurrent._norms import make_norm
from normsmith.recurrent._options import Options, write_out_signature
from normsmith.recurrent._packed import Rows, rows_of
from normsmith.recurrent._steps import Part, States, Step, products, run


class Recurrent(nn.Module):
    """The parts of a layer or a cell, each under a suffix: parameters named as torch's, norms beside them."""

    gates: ClassVar[int]
    states: ClassVar[int]  # how many tensors a state is
    start: ClassVar[Options] = Options()  # what it is if nothing is said
    step: ClassVar[Step]
    bias_of: ClassVar[Callable[[Part], Tensor | None]]

    def __init__(self, input_size: int, hidden_size: int, options: Options) -> None:
        super().__init__()
        name = type(self).__name__
        expect_positive(name, input_size=input_size, hidden_size=hidden_size, max_steps=options.max_steps)
        if not options.h0_noise >= 0:
            raise OptionError(f"{name} expects h0_noise, a standard deviation, of 0 or more: got {options.h0_noise!r}")
        if not options.gamma > 0:
            raise OptionError(
                f"{name} expects gamma, the first weight of its norms, above zero: got {options.gamma!r}; try 0.1"
            )
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, options.bias
        self.norm, self.cell_norm = options.norm, options.norm if options.cell_norm == "same" else options.cell_norm
        self.h0_noise = options.h0_noise

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        write_out_signature(cls, cls.start)

    def _add(self, suffix: str, input_size: int, options: Options) -> None:
        width = self.gates * self.hidden_size
        where: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
        for key, shape in (("weight_ih", (width, input_size)), ("weight_hh", (width, self.hidden_size))):
            self.register_parameter(key + suffix, nn.Parameter(torch.empty(shape, **where)))
        for key in ("bias_ih", "bias_hh"):
            self.register_parameter(key + suffix, nn.Parameter(torch.empty(width, **where)) if self.bias else None)
        norms = (("norm_ih", self.norm, width), ("norm_hh", self.norm, width), ("norm_c", self.cell_norm, self.hidden_size))
        for key, norm, size in norms:
            own = make_norm(norm, size, gamma=options.gamma, bias=key == "norm_c", max_steps=options.max_steps, **where)
            if own is not None:
                self.register_module(key + suffix, own)

    def _part(self, suffix: str) -> Part:
        return Part(*(getattr(self, key + suffix, None) for key in Part._fields))  # type: ignore[arg-type]

    def _initialise(self, suffixes: Sequence[str], forget_bias: float) -> None:
        """The same weights whatever the norm: W as torch's, U orthogonal gate by gate, biases zero but for the open forget gate."""
        bound = 1 / math.sqrt(self.hidden_size)
        for suffix in suffixes:
            part = self._part(suffix)
            nn.init.uniform_(part.weight_ih, -bound, bound)
            for gate in part.weight_hh.data.chunk(self.gates):
                nn.init.orthogonal_(gate)
            if part.bias_ih is not None and part.bias_hh is not None:
                nn.init.zeros_(part.bias_ih)
                nn.init.zeros_(part.bias_hh)
                if self.states == 2:
                    nn.init.constant_(part.bias_ih.data.chunk(self.gates)[1], forget_bias)

    def _start(self, given: States | None, like: Tensor, shape: tuple[int, ...], first: bool = True) -> States:
        """The states given, or zeros; before the first step, in training, with noise on h."""
        name = type(self).__name__
        if given is None:
            h = like.new_zeros(shape)
            given = (h,) * self.states
        if len(given) != self.states or any(state.shape != shape for state in given):
            raise InputError(
                f"{name} expects {self.states} initial state{'s' if self.states > 1 else ''} of shape {shape}: got "
                f"{', '.join(str(tuple(state.shape)) for state in given)}"
            )
        if first and self.training and self.h0_noise:
            given = (given[0] + self.h0_noise * torch.randn_like(given[0]), *given[1:])
        return given

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, norm={self.norm!r}"


class Layers(Recurrent):
    """Layers of cells over sequences, with the interface of torch's."""

    fused: ClassVar[Callable[..., Any]]  # torch's own, for layers without a norm

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        options: Options,
    ) -> None:
        super().__init__(input_size, hidden_size, options)
        name = type(self).__name__
        expect_positive(name, num_layers=num_layers)
        if not 0 <= dropout <= 1:
            raise OptionError(f"{name} expects dropout, a probability, from 0 to 1: got {dropout!r}")
        if dropout and num_layers == 1:
            raise OptionError(f"{name} expects several layers for dropout, which is between them: got num_layers=1")
        self.num_layers, self.batch_first, self.dropout, self.bidirectional = num_layers, batch_first, dropout, bidirectional
        self._directions = ("", "_reverse") if bidirectional else ("",)
        self._suffixes = [f"_l{layer}{way}" for layer in range(num_layers) for way in self._directions]
        for index, suffix in enumerate(self._suffixes):
            self._add(suffix, input_size if index < len(self._directions) else hidden_size * len(self._directions), options)
        self._initialise(self._suffixes, options.forget_bias)

    def _through(
        self, x: Tensor | PackedSequence, given: States | None, lengths: Tensor | None
    ) -> tuple[Tensor | PackedSequence, States]:
        """The outputs, and the last states (layers * directions, N, H)."""
        rows = rows_of(type(self).__name__, x, lengths, self.batch_first, self.input_size)
        shape = (len(self._suffixes), rows.samples, self.hidden_size)
        if given is not None and rows.form == "single":
            given = tuple(state.unsqueeze(1) for state in given)
        start = tuple(rows.ordered(state) for state in self._start(given, rows.data, shape))
        rows, last = self._fused(rows, start) if self.norm is None and self.cell_norm is None else self._stepwise(rows, start)
        return rows.output(), tuple(rows.restored(state) for state in last)

    def _stepwise(self, rows: Rows, start: States) -> tuple[Rows, States]:
        """Layer by layer, direction by direction, step by step."""
        last = []
        reversal = rows.reversal() if self.bidirectional else None
        for layer in range(self.num_layers):
            outputs = []
            for way in range(len(self._directions)):
                index = layer * len(self._directions) + way
                part, inputs = self._part(self._suffixes[index]), rows.data
                if way and reversal is not None:
                    inputs = inputs[reversal]
                each = products(part, inputs, rows.sizes, type(self).bias_of(part))
                output, states = run(type(self).step, part, each, tuple(state[index] for state in start))
                outputs.append(output[reversal] if way and reversal is not None else output)
                last.append(states)
            data = torch.cat(outputs, 1) if self.bidirectional else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                data = nn.functional.dropout(data, self.dropout, self.training)
            rows = rows.with_data(data)
        return rows, tuple(torch.stack(states) for states in zip(*last, strict=True))

    def _fused(self, rows: Rows, start: States) -> tuple[Rows, States]:
        """By torch's own operator."""
        weights = [t for suffix in self._suffixes for t in self._part(suffix)[:4] if t is not None]
        options = (weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        state = start if self.states == 2 else start[0]
        if rows.batch_sizes is not None:
            output, *last = type(self).fused(rows.data, rows.batch_sizes, state, *options)
        else:
            x = rows.data.view(len(rows.sizes), rows.samples, -1)
            output, *last = type(self).fused(x, state, *options, False)
        return rows.with_data(output.flatten(0, -2)), tuple(last)

    def extra_repr(self) -> str:
        own = {"num_layers": (self.num_layers, 1), "batch_first": (self.batch_first, False), "dropout": (self.dropout, 0.0)}
        own["bidirectional"] = (self.bidirectional, False)
        return super().extra_repr() + "".join(f", {key}={value}" for key, (value, default) in own.items() if value != default)


class Cell(Recurrent):
    """One step, with the interface of torch's."""

    def __init__(self, input_size: int, hidden_size: int, options: Options) -> None:
        super().__init__(input_size, hidden_size, options)
        self._add("", input_size, options)
        self._initialise([""], options.forget_bias)

    def _next(self, x: Tensor, given: States | None, step: int) -> States:
        """The states after the step of that number."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            raise InputError(
                f"{type(self).__name__} expects an input of {self.input_size} numbers, (N, {self.input_size}): got {tuple(x.shape)}"
            )
        single = x.dim() == 1
        rows = x.unsqueeze(0) if single else x
        if given is not None and single:
            given = tuple(state.unsqueeze(0) for state in given)
        given = self._start(given, rows, (len(rows), self.hidden_size), first=step == 0)
        part = self._part("")
        (product,) = products(part, rows, [len(rows)], type(self).bias_of(part), step)
        states = type(self).step(part, product, given, step)
        return tuple(state.squeeze(0) for state in states) if single else states


def expect_positive(name: str, **sizes: int) -> None:
    """Raise unless all are positive integers."""
    for key, value in sizes.items():
        if type(value) is not int or value < 1:
            raise OptionError(f"{name} expects {key} as a positive integer: got {value!r}")
