// One step of a recurrent layer backwards: the gradients of some texts' gates from that of their state.
//
// Bindings: 0: if PRODUCT the gate gradients of the step that came after, else the gradients of the states, 1: the state's weight
// [GATES hidden, hidden] (anything without PRODUCT), 2: dy (anything without OUTPUT), 3: gates [rows, 4 hidden], or an RNN's y,
// 4: an LSTM's cells before or a GRU's states before (else anything), 5: the gate gradients [rows, WIDTH hidden], or if FINISH the
// gradient of the first state, 6: what goes past the gates, [batch, hidden] in f32: the gradient of an LSTM's cells, or a GRU's part of
// its state's. One workgroup does four texts and UNITS elements of the state; SLICES invocations share the sums of one.
// Workgroup memory: 16 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const CELL: u32 = 2u;
const OUTPUT: bool = true;
const PRODUCT: bool = true;
const FINISH: bool = false;
const UNITS: u32 = 32u;
const SLICES: u32 = 8u;
// end variant

// CELL: RNN with tanh, RNN with relu, LSTM, GRU.
const LSTM: u32 = 2u;
const GRU: u32 = 3u;
const GATES: u32 = select(select(1u, 3u, CELL == GRU), 4u, CELL == LSTM);
const WIDTH: u32 = select(1u, 4u, CELL >= LSTM);

struct Params {
    hidden: u32,
    // The texts of this launch, and where the rows of the step begin.
    first: u32,
    end: u32,
    row: u32,
    // Where what belongs to text 0 begins, in bindings 0, 2 (row 0 there), 4 and, if FINISH, 5, and the weight.
    incoming_offset: i32,
    dy_offset: u32,
    old_offset: u32,
    weight_offset: u32,
}

@group(0) @binding(0) var<storage, read> incoming: array<elem>;
@group(0) @binding(1) var<storage, read> weight: array<elem>;
@group(0) @binding(2) var<storage, read> dy: array<elem>;
@group(0) @binding(3) var<storage, read> gates: array<elem>;
@group(0) @binding(4) var<storage, read> old: array<elem>;
@group(0) @binding(5) var<storage, read_write> grads: array<elem>;
@group(0) @binding(6) var<storage, read_write> past: array<f32>;
var<immediate> params: Params;

// Of every invocation: a component per text.
var<workgroup> sums: array<vec4<f32>, UNITS * SLICES>;

// shared is_nan
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}
// end shared

// shared exponential
/// A whole number below 2^22 as an integer, read off its bits: drivers in software convert floats one by one.
fn whole(k: f32) -> i32 {
    return bitcast<i32>(k + 12582912.0) - 0x4b400000;
}

/// e to the power of x: 2^k e^r with |r| <= ln 2 / 2, so that the error does not grow with x.
fn exponential(x: f32) -> f32 {
    // Further on the result is infinity or 0 as it is here.
    let within = select(select(x, 104.0, x > 104.0), -104.0, x < -104.0);
    let k = round(within * 1.4426950409);
    let r = (within - k * 0.693145751953125) - k * 1.428606765e-6;
    let e = 1.0 + (r + r * r * (0.5 + r * (0.16666667 + r * (0.041666668 + r * (0.0083333333 + r * 0.0013888889)))));
    // Two factors, so that neither leaves the range of f32 before the product does.
    let half = whole(k) >> 1u;
    let rest = whole(k) - half;
    return select(e * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(rest + 127) << 23u), x, is_nan(x));
}
// end shared

// shared gate functions
fn sigmoid(x: f32) -> f32 {
    // Of e^x and e^-x the one that does not overflow.
    let e = exponential(-abs(x));
    return select(1.0, e, x < 0.0) / (1.0 + e);
}

fn hyperbolic_tangent(x: f32) -> f32 {
    let a = abs(x);
    if (a < 0.25) {
        let q = x * x;
        return x + x * q * (-0.33333333 + q * (0.13333333 + q * (-0.053968254 + q * 0.021869489)));
    }
    let t = 1.0 - 2.0 / (exponential(2.0 * min(a, 10.0)) + 1.0);
    return select(select(t, -t, x < 0.0), x, is_nan(x));
}
// end shared

/// The share of one invocation in the products of four texts' gate gradients with a column of the weight.
fn share(texts: vec4<u32>, unit: u32, slice: u32) -> vec4<f32> {
    let starts = vec4<u32>(u32(params.incoming_offset)) + texts * (WIDTH * params.hidden);
    var own = vec4<f32>();
    for (var k = slice; k < GATES * params.hidden; k += SLICES) {
        let g = vec4<f32>(
            load_elem(incoming[starts.x + k]),
            load_elem(incoming[starts.y + k]),
            load_elem(incoming[starts.z + k]),
            load_elem(incoming[starts.w + k]),
        );
        own = fma(g, vec4<f32>(load_elem(weight[params.weight_offset + k * params.hidden + unit])), own);
    }
    return own;
}

/// One unit of one text; `sum` is the gradient of its state if PRODUCT.
fn retreat(sum: f32, text: u32, unit: u32) {
    let own = text * params.hidden + unit;
    var dh = sum;
    if (!PRODUCT) {
        dh = load_elem(incoming[u32(params.incoming_offset + i32(own))]);
    }
    if (CELL == GRU) {
        dh += past[own];
    }
    if (FINISH) {
        grads[own] = store_elem(dh);
        return;
    }
    let row = (params.row + text) * params.hidden + unit;
    if (OUTPUT) {
        dh += load_elem(dy[params.dy_offset + row]);
    }
    if (CELL < LSTM) {
        let y = load_elem(gates[row]);
        grads[row] = store_elem(select(dh * (1.0 - y * y), select(dh, 0.0, y <= 0.0), CELL == 1u));
        return;
    }
    let at = (params.row + text) * 4u * params.hidden + unit;
    let first = load_elem(gates[at]);
    let second = load_elem(gates[at + params.hidden]);
    let third = load_elem(gates[at + 2u * params.hidden]);
    let fourth = load_elem(gates[at + 3u * params.hidden]);
    let before = load_elem(old[params.old_offset + own]);
    if (CELL == LSTM) {
        // i, f, g, o
        let t = hyperbolic_tangent(second * before + first * third);
        let dc = past[own] + dh * fourth * (1.0 - t * t);
        grads[at] = store_elem(dc * third * first * (1.0 - first));
        grads[at + params.hidden] = store_elem(dc * before * second * (1.0 - second));
        grads[at + 2u * params.hidden] = store_elem(dc * first * (1.0 - third * third));
        grads[at + 3u * params.hidden] = store_elem(dh * t * fourth * (1.0 - fourth));
        past[own] = dc * second;
    } else {
        // r, z, q, n, with q the state's part of n
        let dn = dh * (1.0 - second) * (1.0 - fourth * fourth);
        grads[at] = store_elem(dn * third * first * (1.0 - first));
        grads[at + params.hidden] = store_elem(dh * (before - fourth) * second * (1.0 - second));
        grads[at + 2u * params.hidden] = store_elem(dn * first);
        grads[at + 3u * params.hidden] = store_elem(dn);
        past[own] = dh * second;
    }
}

@compute @workgroup_size(UNITS * SLICES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let blocks = (params.hidden + UNITS - 1u) / UNITS;
    let first = params.first + number / blocks * 4u;
    let slice = local / UNITS;
    let unit = number % blocks * UNITS + local % UNITS;
    var own = vec4<f32>();
    // Past the end the last ones stand in: all take part in the barrier.
    if (PRODUCT) {
        let texts = min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(params.end - 1u));
        own = share(texts, min(unit, params.hidden - 1u), slice);
    }
    if (SLICES > 1u) {
        sums[local] = own;
        workgroupBarrier();
    }
    for (var t = slice; t < 4u; t += SLICES) {
        if (first + t < params.end && unit < params.hidden) {
            var total = own[t];
            if (SLICES > 1u) {
                total = 0.0;
                for (var i = local % UNITS; i < UNITS * SLICES; i += UNITS) {
                    total += sums[i][t];
                }
            }
            retreat(total, first + t, unit);
        }
    }
}
