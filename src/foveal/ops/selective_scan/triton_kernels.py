"""The two Triton kernels of the selective scan; `foveal.ops.selective_scan.triton` launches them.

A program handles a few channels of one picture, route and group, and processes their sequence in chunks of T steps. A
chunk is one tile, (channels, states, T). Pairs of a decay and a state compose as

    (a, x) then (b, y) = (a·b, x·b + y)

which is associative, so that one parallel scan yields all T states; the contribution of the state before the chunk is
added last. The forward pass saves that state for each chunk. The backward pass processes the chunks from last to first,
recomputes their states from it, and computes the adjoint g of the state by the same scan in reverse:

    g_t = C_t · dy_t + exp(delta_{t+1} · A) ∘ g_{t+1}

Places at which a route visits nothing are scanned with a step of 0, which leaves the state unchanged. Sums over the
channels of a group are atomic, so the last bits of the gradients of B and C differ from run to run.
"""

# Triton resolves every annotation of a kernel, and has none for an optional pointer.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _then(decay, state, next_decay, next_state):
    return decay * next_decay, state * next_decay + next_state


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    rounded = 1.0 + e
    # log(1 + e) to full precision although 1 + e is rounded: divide the logarithm by the rounded e, multiply by e.
    exact = rounded == 1.0
    log1p = tl.where(exact, e, tl.log(rounded) * (e / tl.where(exact, 1.0, rounded - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _seek(routes, t, inside):
    """Places visited at steps t, and which of them are valid."""
    place = t.to(tl.int64)
    if routes is not None:
        place = tl.load(routes + place, mask=inside, other=-1).to(tl.int64)
    return place, inside & (place >= 0)


@triton.jit
def _read(start, place, stride, seen):
    """Rows of a sequence at some places, float32, 0 elsewhere."""
    return tl.load(start[:, None] + place[None, :] * stride, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def _step(start, bias, place, stride, seen, softplus: tl.constexpr):
    """Argument of softplus, and the step size, 0 where masked."""
    raw = _read(start, place, stride, seen) + bias[:, None]
    size = raw
    if softplus:
        size = _softplus(raw)
    return raw, tl.where(seen, size, 0.0)


@triton.jit
def _vector(start, row, mine):
    """A value per channel, 0 if the input is missing."""
    found = tl.zeros(row.shape, tl.float32)
    if start is not None:
        found = tl.load(start + row, mask=mine, other=0.0).to(tl.float32)
    return found


@triton.jit
def _table(start, cell, held):
    """A value per channel and state, 0 if the input is missing."""
    found = tl.zeros(held.shape, tl.float32)
    if start is not None:
        found = tl.load(start + cell, mask=held, other=0.0).to(tl.float32)
    return found


@triton.jit
def forward(
    u,
    delta,
    rates,
    weights_in,
    weights_out,
    skip,
    gate,
    bias,
    start,
    routes,
    out,
    last,
    checkpoints,
    channels,
    length,
    steps,
    groups,
    states,
    chunks,
    u_batch,
    u_channel,
    u_place,
    delta_batch,
    delta_route,
    delta_channel,
    delta_place,
    in_batch,
    in_route,
    in_group,
    in_state,
    in_place,
    out_batch,
    out_route,
    out_group,
    out_state,
    out_place,
    gate_batch,
    gate_channel,
    gate_place,
    softplus: tl.constexpr,
    in_constant: tl.constexpr,
    out_constant: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Outputs, last states and, if `checkpoints` is given, the states before the chunks."""
    batch = tl.program_id(0).to(tl.int64)
    route = (tl.program_id(1) // groups).to(tl.int64)
    group = (tl.program_id(1) % groups).to(tl.int64)
    of_group = channels // groups
    inner = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mine = inner < of_group
    channel = group * of_group + inner
    row = route * channels + channel
    state = tl.arange(0, STATES)
    held = mine[:, None] & (state < states)[None, :]
    cell = row[:, None] * states + state[None, :]
    # (batch, route, channel, state) and (batch, route, channel, chunk, state)
    all_rows = (tl.num_programs(1) // groups) * channels
    lane = tl.arange(0, STEPS)

    rate = tl.load(rates + cell, mask=held, other=0.0).to(tl.float32)
    through, offset = _vector(skip, row, mine), _vector(bias, row, mine)
    u += batch * u_batch + channel * u_channel
    delta += batch * delta_batch + route * delta_route + channel * delta_channel
    # (channels, states, T), or T of 1
    if in_constant:
        entering = _table(weights_in, cell, held)[:, :, None]
    else:
        weights_in += batch * in_batch + route * in_route + group * in_group + state * in_state
    if out_constant:
        leaving = _table(weights_out, cell, held)[:, :, None]
    else:
        weights_out += batch * out_batch + route * out_route + group * out_group + state * out_state
    if routes is not None:
        routes += route * steps

    now = _table(start, batch * all_rows * states + cell, held)
    for chunk in range(chunks):
        if checkpoints is not None:
            kept = ((batch * all_rows + row) * chunks + chunk) * states
            tl.store(checkpoints + kept[:, None] + state[None, :], now, mask=held)
        t = chunk * STEPS + lane
        place, visited = _seek(routes, t, t < steps)
        seen, weighed = mine[:, None] & visited[None, :], (state < states)[:, None] & visited[None, :]
        x = _read(u, place, u_place, seen)
        _, step = _step(delta, offset, place, delta_place, seen, softplus)
        if not in_constant:
            entering = _read(weights_in, place, in_place, weighed)[None, :, :]
        if not out_constant:
            leaving = _read(weights_out, place, out_place, weighed)[None, :, :]
        # (channels, states, T)
        decay = tl.exp(step[:, None, :] * rate[:, :, None])
        decay, added = tl.associative_scan((decay, (step * x)[:, None, :] * entering), 2, _then)
        reached = decay * now[:, :, None] + added
        y = tl.sum(reached * leaving, 1) + through[:, None] * x
        now = tl.sum(tl.where(lane[None, None, :] == STEPS - 1, reached, 0.0), 2)
        if gate is not None:
            gates = gate + batch * gate_batch + channel * gate_channel
            z = _read(gates, place, gate_place, seen)
            y = y * z * _sigmoid(z)
        tl.store(out + ((batch * all_rows + row) * length)[:, None] + place[None, :], y, mask=seen)
    tl.store(last + (batch * all_rows * states + cell), now, mask=held)


@triton.jit
def backward(
    u,
    delta,
    rates,
    weights_in,
    weights_out,
    skip,
    gate,
    bias,
    routes,
    checkpoints,
    grad,
    grad_last,
    of_u,
    of_delta,
    of_rates,
    of_in,
    of_out,
    of_skip,
    of_gate,
    of_bias,
    of_start,
    channels,
    length,
    steps,
    groups,
    states,
    chunks,
    u_batch,
    u_channel,
    u_place,
    delta_batch,
    delta_route,
    delta_channel,
    delta_place,
    in_batch,
    in_route,
    in_group,
    in_state,
    in_place,
    out_batch,
    out_route,
    out_group,
    out_state,
    out_place,
    gate_batch,
    gate_channel,
    gate_place,
    grad_batch,
    grad_channel,
    grad_place,
    softplus: tl.constexpr,
    in_constant: tl.constexpr,
    out_constant: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Gradients: of u, delta and z per route, of A, D and the bias per picture."""
    batch = tl.program_id(0).to(tl.int64)
    route = (tl.program_id(1) // groups).to(tl.int64)
    group = (tl.program_id(1) % groups).to(tl.int64)
    of_group = channels // groups
    inner = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mine = inner < of_group
    channel = group * of_group + inner
    row = route * channels + channel
    state = tl.arange(0, STATES)
    held = mine[:, None] & (state < states)[None, :]
    cell = row[:, None] * states + state[None, :]
    all_rows = (tl.num_programs(1) // groups) * channels
    lane = tl.arange(0, STEPS)

    rate = tl.load(rates + cell, mask=held, other=0.0).to(tl.float32)
    through, offset = _vector(skip, row, mine), _vector(bias, row, mine)
    u += batch * u_batch + channel * u_channel
    delta += batch * delta_batch + route * delta_route + channel * delta_channel
    # (channels, states, T), or T of 1
    if in_constant:
        entering = _table(weights_in, cell, held)[:, :, None]
    else:
        weights_in += batch * in_batch + route * in_route + group * in_group + state * in_state
    if out_constant:
        leaving = _table(weights_out, cell, held)[:, :, None]
    else:
        weights_out += batch * out_batch + route * out_route + group * out_group + state * out_state
    grads = grad + batch * grad_batch + channel * grad_channel
    if routes is not None:
        routes += route * steps
    # (batch, route, group, state, place)
    weight = (((batch * tl.num_programs(1) + tl.program_id(1)) * states + state) * length)[:, None]
    rows = ((batch * all_rows + row) * length)[:, None]

    adjoint = _table(grad_last, batch * all_rows * states + cell, held)
    first_step = tl.zeros((CHANNELS,), tl.float32)
    sum_in = tl.zeros((CHANNELS, STATES), tl.float32)
    sum_out = tl.zeros((CHANNELS, STATES), tl.float32)
    sum_rates = tl.zeros((CHANNELS, STATES), tl.float32)
    sum_skip = tl.zeros((CHANNELS,), tl.float32)
    sum_bias = tl.zeros((CHANNELS,), tl.float32)
    for done in range(chunks):
        chunk = chunks - 1 - done
        t = chunk * STEPS + lane
        # The states before each step: the scan shifted by one step, from the state before the chunk.
        place, visited = _seek(routes, t - 1, (lane > 0) & (t - 1 < steps))
        seen, weighed = mine[:, None] & visited[None, :], (state < states)[:, None] & visited[None, :]
        _, step = _step(delta, offset, place, delta_place, seen, softplus)
        added = step * _read(u, place, u_place, seen)
        if not in_constant:
            entering = _read(weights_in, place, in_place, weighed)[None, :, :]
        # (channels, states, T)
        decay = tl.exp(step[:, None, :] * rate[:, :, None])
        decay, reached = tl.associative_scan((decay, added[:, None, :] * entering), 2, _then)
        kept = ((batch * all_rows + row) * chunks + chunk) * states
        now = tl.load(checkpoints + kept[:, None] + state[None, :], mask=held, other=0.0)
        before = decay * now[:, :, None] + reached

        place, visited = _seek(routes, t + 1, t + 1 < steps)
        seen = mine[:, None] & visited[None, :]
        _, after = _step(delta, offset, place, delta_place, seen, softplus)

        place, visited = _seek(routes, t, t < steps)
        seen, weighed = mine[:, None] & visited[None, :], (state < states)[:, None] & visited[None, :]
        x = _read(u, place, u_place, seen)
        raw, step = _step(delta, offset, place, delta_place, seen, softplus)
        if not in_constant:
            entering = _read(weights_in, place, in_place, weighed)[None, :, :]
        if not out_constant:
            leaving = _read(weights_out, place, out_place, weighed)[None, :, :]
        before *= tl.exp(step[:, None, :] * rate[:, :, None])  # decayed by the step
        reached = before + (step * x)[:, None, :] * entering
        of_y = _read(grads, place, grad_place, seen)
        if gate is not None:
            y = tl.sum(reached * leaving, 1) + through[:, None] * x
            z = _read(gate + batch * gate_batch + channel * gate_channel, place, gate_place, seen)
            open_ = _sigmoid(z)
            of_z = of_y * y * open_ * (1.0 + z * (1.0 - open_))
            tl.store(of_gate + rows + place[None, :], of_z, mask=seen)
            of_y = of_y * z * open_

        decay = tl.exp(after[:, None, :] * rate[:, :, None])
        decay, g = tl.associative_scan((decay, of_y[:, None, :] * leaving), 2, _then, reverse=True)
        g += decay * adjoint[:, :, None]
        adjoint = tl.sum(tl.where(lane[None, None, :] == 0, g, 0.0), 2)

        first_step = tl.sum(tl.where(lane[None, :] == 0, step, 0.0), 1)
        of_weights = reached * of_y[:, None, :]
        if out_constant:
            sum_out += tl.sum(of_weights, 2)
        else:
            tl.atomic_add(of_out + weight + place[None, :], tl.sum(of_weights, 0), mask=weighed)
        of_weights = g * (step * x)[:, None, :]
        if in_constant:
            sum_in += tl.sum(of_weights, 2)
        else:
            tl.atomic_add(of_in + weight + place[None, :], tl.sum(of_weights, 0), mask=weighed)
        along = tl.sum(g * entering, 1)
        tl.store(of_u + rows + place[None, :], of_y * through[:, None] + step * along, mask=seen)
        g *= before
        sum_rates += tl.sum(g * step[:, None, :], 2)
        of_step = x * along + tl.sum(g * rate[:, :, None], 1)
        if softplus:
            of_step *= _sigmoid(raw)
        of_step = tl.where(seen, of_step, 0.0)
        tl.store(of_delta + rows + place[None, :], of_step, mask=seen)
        sum_skip += tl.sum(of_y * x, 1)
        sum_bias += tl.sum(of_step, 1)
    tl.store(of_rates + (batch * all_rows * states + cell), sum_rates, mask=held)
    if in_constant:
        tl.store(of_in + (batch * all_rows * states + cell), sum_in, mask=held)
    if out_constant:
        tl.store(of_out + (batch * all_rows * states + cell), sum_out, mask=held)
    if of_start is not None:
        of_first = adjoint * tl.exp(first_step[:, None] * rate)
        tl.store(of_start + (batch * all_rows * states + cell), of_first, mask=held)
    if skip is not None:
        tl.store(of_skip + (batch * all_rows + row), sum_skip, mask=mine)
    if bias is not None:
        tl.store(of_bias + (batch * all_rows + row), sum_bias, mask=mine)
