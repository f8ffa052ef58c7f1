"""LSTM and GRU with a norm for each product, step by step and layer by layer from the formulas; gates in the order of torch."""

import torch


def _layer(x, weight, bias, _):
    mean = x.mean(1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(1, keepdim=True) + 1e-5).sqrt() * weight + (0 if bias is None else bias)


def _batch(x, weight, bias, statistics):
    mean, var = (x.mean(0), (x - x.mean(0)).square().mean(0)) if statistics is None else statistics
    return (x - mean) / (var + 1e-5).sqrt() * weight + (0 if bias is None else bias)


NORMS = {"layer": _layer, "batch": _batch}


def _direction(kind, x, part, norm, running, lengths, max_steps, backwards):
    """Outputs (T, N, H), the last states (N, H), and the moments of each step in training: of a step, the sequences that are that long."""
    normalize = NORMS[norm]
    steps, samples, _ = x.shape
    hidden = part["weight_hh"].shape[1]
    if backwards:
        x = torch.stack([torch.cat([x[:n, i].flip(0), x[n:, i]]) for i, n in enumerate(lengths)], 1)
    h = c = torch.zeros(samples, hidden, dtype=x.dtype)
    outputs, seen = [], []
    for t in range(steps):
        going = [i for i in range(samples) if lengths[i] > t]
        if not going:
            outputs.append(torch.zeros_like(h))
            continue
        row = min(t, max_steps - 1)

        def apply(which, value, row=row):
            own = None if running is None else (running[which][0][row], running[which][1][row])
            seen[-1][which] = value.detach()
            return normalize(value, part[f"{which}.weight"], part.get(f"{which}.bias"), own)

        seen.append({})
        p = apply("norm_ih", x[t, going] @ part["weight_ih"].T) + part["bias_ih"]
        q = apply("norm_hh", h[going] @ part["weight_hh"].T)
        if kind == "lstm":
            i, f, g, o = (p + q + part["bias_hh"]).chunk(4, 1)
            new_c = torch.sigmoid(f) * c[going] + torch.sigmoid(i) * torch.tanh(g)
            new_h = torch.sigmoid(o) * torch.tanh(apply("norm_c", new_c))
            c = c.index_copy(0, torch.tensor(going), new_c)
        else:
            b = part["bias_hh"].chunk(3)
            r, z = (torch.sigmoid(p.chunk(3, 1)[k] + q.chunk(3, 1)[k] + b[k]) for k in (0, 1))
            n = torch.tanh(p.chunk(3, 1)[2] + r * (q.chunk(3, 1)[2] + b[2]))
            new_h = (1 - z) * n + z * h[going]
        h = h.index_copy(0, torch.tensor(going), new_h)
        outputs.append(torch.zeros_like(h).index_copy(0, torch.tensor(going), new_h))
    y = torch.stack(outputs)
    if backwards:
        y = torch.stack([torch.cat([y[:n, i].flip(0), y[n:, i]]) for i, n in enumerate(lengths)], 1)
    return y, ((h, c) if kind == "lstm" else (h,)), seen


def forward(kind, x, state, norm, *, layers=1, bidirectional=False, lengths=None, running=None, max_steps=100):
    """Outputs, last states (layers * directions, N, H), and by suffix what the norms were given at each step; `state` by torch's names."""
    lengths = [x.shape[0]] * x.shape[1] if lengths is None else list(lengths)
    last, seen = [], {}
    for layer in range(layers):
        outputs = []
        for way in ("", "_reverse")[: 1 + bidirectional]:
            suffix = f"_l{layer}{way}"
            part = {key.replace(suffix, "", 1): t for key, t in state.items() if key.partition(".")[0].endswith(suffix)}
            own = running and {which: running.get(which + suffix) for which in ("norm_ih", "norm_hh", "norm_c")}
            y, states, seen[suffix] = _direction(kind, x, part, norm, own, lengths, max_steps, way == "_reverse")
            outputs.append(y)
            last.append(states)
        x = torch.cat(outputs, 2)
    return x, tuple(torch.stack(states) for states in zip(*last, strict=True)), seen
