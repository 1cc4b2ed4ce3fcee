// One step of a recurrent layer: the gates of some texts, and the state that comes of them.
//
// Bindings: 0: projected [rows, GATES hidden], the inputs' part of the gates of all steps, 1: if PRODUCT the transposed weight
// [hidden, GATES hidden] of the state, else the product of it and the states, 2: the state's bias (anything without BIAS),
// 3: the states before, 4: an LSTM's cells before (else anything), 5: y [rows, hidden], 6: gates [rows, 4 hidden], 7: cells
// [rows, hidden]; RNNs do not touch 6 and 7, GRUs not 7. Row `row + text` of the matrices belongs to a text. One workgroup does four texts
// and UNITS elements of the state; SLICES invocations share the sums of one. Workgroup memory: 64 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const CELL: u32 = 2u;
const BIAS: bool = true;
const PRODUCT: bool = true;
const UNITS: u32 = 32u;
const SLICES: u32 = 4u;
// end variant

// CELL: RNN with tanh, RNN with relu, LSTM, GRU.
const LSTM: u32 = 2u;
const GRU: u32 = 3u;
const GATES: u32 = select(select(1u, 3u, CELL == GRU), 4u, CELL == LSTM);

struct Params {
    hidden: u32,
    // The texts of this launch, and where the rows of the step begin.
    first: u32,
    end: u32,
    row: u32,
    // Where the state of text 0 is, in bindings 3 and 4, and the first element of the bias.
    state_offset: u32,
    cell_offset: u32,
    bias_offset: u32,
}

@group(0) @binding(0) var<storage, read> projected: array<elem>;
@group(0) @binding(1) var<storage, read> factor: array<elem>;
@group(0) @binding(2) var<storage, read> bias: array<elem>;
@group(0) @binding(3) var<storage, read> state: array<elem>;
@group(0) @binding(4) var<storage, read> old_cells: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;
@group(0) @binding(6) var<storage, read_write> gates: array<elem>;
@group(0) @binding(7) var<storage, read_write> cells: array<elem>;
var<immediate> params: Params;

// Of every invocation: a column per gate, a row per text.
var<workgroup> sums: array<mat4x4<f32>, UNITS * SLICES>;

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

/// The share of one invocation in the products of four texts' states with the columns of one unit.
fn share(texts: vec4<u32>, unit: u32, slice: u32) -> mat4x4<f32> {
    let starts = vec4<u32>(params.state_offset) + texts * params.hidden;
    var own = mat4x4<f32>();
    for (var k = slice; k < params.hidden; k += SLICES) {
        let h = vec4<f32>(
            load_elem(state[starts.x + k]),
            load_elem(state[starts.y + k]),
            load_elem(state[starts.z + k]),
            load_elem(state[starts.w + k]),
        );
        let at = k * GATES * params.hidden + unit;
        own[0] = fma(h, vec4<f32>(load_elem(factor[at])), own[0]);
        if (GATES > 1u) {
            own[1] = fma(h, vec4<f32>(load_elem(factor[at + params.hidden])), own[1]);
            own[2] = fma(h, vec4<f32>(load_elem(factor[at + 2u * params.hidden])), own[2]);
        }
        if (GATES > 3u) {
            own[3] = fma(h, vec4<f32>(load_elem(factor[at + 3u * params.hidden])), own[3]);
        }
    }
    return own;
}

/// What the state contributes to a gate, with its bias.
fn from_state(sum: f32, text: u32, gate: u32, unit: u32) -> f32 {
    var value = sum;
    if (!PRODUCT) {
        value = load_elem(factor[((text - params.first) * GATES + gate) * params.hidden + unit]);
    }
    if (BIAS) {
        value += load_elem(bias[params.bias_offset + gate * params.hidden + unit]);
    }
    return value;
}

fn from_input(text: u32, gate: u32, unit: u32) -> f32 {
    return load_elem(projected[((params.row + text) * GATES + gate) * params.hidden + unit]);
}

/// The new state of one unit of one text; `sums` are those of its gates.
fn advance(sums: vec4<f32>, text: u32, unit: u32) {
    let at = (params.row + text) * params.hidden + unit;
    let gate = (params.row + text) * 4u * params.hidden + unit;
    let first = from_input(text, 0u, unit) + from_state(sums.x, text, 0u, unit);
    if (CELL == 0u) {
        y[at] = store_elem(hyperbolic_tangent(first));
        return;
    }
    if (CELL == 1u) {
        y[at] = store_elem(select(first, 0.0, first <= 0.0));
        return;
    }
    let second = sigmoid(from_input(text, 1u, unit) + from_state(sums.y, text, 1u, unit));
    let of_input = from_input(text, 2u, unit);
    let of_state = from_state(sums.z, text, 2u, unit);
    if (CELL == LSTM) {
        let i = sigmoid(first);
        let g = hyperbolic_tangent(of_input + of_state);
        let o = sigmoid(from_input(text, 3u, unit) + from_state(sums.w, text, 3u, unit));
        let c = second * load_elem(old_cells[params.cell_offset + text * params.hidden + unit]) + i * g;
        gates[gate] = store_elem(i);
        gates[gate + params.hidden] = store_elem(second);
        gates[gate + 2u * params.hidden] = store_elem(g);
        gates[gate + 3u * params.hidden] = store_elem(o);
        cells[at] = store_elem(c);
        y[at] = store_elem(o * hyperbolic_tangent(c));
    } else {
        let r = sigmoid(first);
        let n = hyperbolic_tangent(of_input + r * of_state);
        gates[gate] = store_elem(r);
        gates[gate + params.hidden] = store_elem(second);
        gates[gate + 2u * params.hidden] = store_elem(of_state);
        gates[gate + 3u * params.hidden] = store_elem(n);
        y[at] = store_elem(n + second * (load_elem(state[params.state_offset + text * params.hidden + unit]) - n));
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
    var own = mat4x4<f32>();
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
            var total = vec4<f32>(own[0][t], own[1][t], own[2][t], own[3][t]);
            if (SLICES > 1u) {
                total = vec4<f32>();
                for (var i = local % UNITS; i < UNITS * SLICES; i += UNITS) {
                    total += vec4<f32>(sums[i][0][t], sums[i][1][t], sums[i][2][t], sums[i][3][t]);
                }
            }
            advance(total, first + t, unit);
        }
    }
}
