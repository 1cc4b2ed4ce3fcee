// Losses of rows of logits with their target classes, and the log-sum-exp of every row:
// loss = (lse - x[target]) hit + (lse - mean(x)) spread, 0 where the target is the ignored one. A target that is no class is a fault.
//
// Bindings: 0: x [rows, cols], 1: target [rows], 2: loss [rows], 3: lse [rows], 4: fault. LANES invocations walk a row once.
// Workgroup memory: 16 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const SUBGROUP: u32 = 1u;
fn shuffled(x: vec2<f32>, step: u32) -> vec2<f32> { return x; }
// end variant

/// Lanes per row; the workgroup has WORKGROUP / LANES rows.
override LANES: u32 = 256u;
override WORKGROUP: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    target_offset: u32,
    loss_offset: u32,
    lse_offset: u32,
    ignored: i32,
    can_ignore: u32,
    hit: f32,
    spread: f32,
    op: u32,
}

struct Fault {
    state: atomic<u32>,
    op: u32,
    index: i32,
    size: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> target_class: array<i32>;
@group(0) @binding(2) var<storage, read_write> loss: array<elem>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> fault: Fault;
var<immediate> params: Params;

// shared is_nan
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}
// end shared

// shared infinity
/// Built at run time: constants must be finite.
fn infinity() -> f32 {
    var bits = 0x7f800000u;
    return bitcast<f32>(bits);
}

fn not_a_number() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

/// Of either sign. By its bits: compilers may take it that no float is infinite, Metal's does.
fn is_infinite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
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

// shared logarithm
/// ln(x) for normal positive x: e ln 2 + 2 atanh((m - 1) / (m + 1)) with x = m 2^e, m in [1/sqrt 2, sqrt 2). NaN stays.
fn logarithm(x: f32) -> f32 {
    if (is_nan(x)) {
        return x;
    }
    let bits = bitcast<u32>(x);
    let e = i32((bits + 0x004afb0du) >> 23u) - 127;
    let m = bitcast<f32>(bits - (u32(e) << 23u));
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let series = q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * 0.09090909))));
    return f32(e) * 0.693145751953125 + (2.0 * (s + s * series) + f32(e) * 1.428606765e-6);
}
// end shared

// shared row_exponentials
/// Largest value so far and the sum of exponentials of the distances from it. No infinity to begin with: the difference of two is NaN.
fn nothing_yet() -> vec2<f32> {
    return vec2<f32>(-3.4028234e38, 0.0);
}

fn with_value(so_far: vec2<f32>, x: f32) -> vec2<f32> {
    if (is_nan(x)) {
        return vec2<f32>(so_far.x, x);
    }
    if (x > so_far.x) {
        return vec2<f32>(x, so_far.y * exponential(so_far.x - x) + 1.0);
    }
    return vec2<f32>(so_far.x, so_far.y + exponential(x - so_far.x));
}

fn joined(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let largest = max(a.x, b.x);
    return vec2<f32>(largest, a.y * exponential(a.x - largest) + b.y * exponential(b.x - largest));
}

var<workgroup> pairs: array<vec2<f32>, WORKGROUP>;

/// All lanes of a row joined, for each of them. All invocations must call it. The sum is NaN where something is NaN or infinite or
/// everything is minus infinity. In the order of `row_sum`.
fn row_exponentials(local: u32, value: vec2<f32>) -> vec2<f32> {
    var total = value;
    for (var step = 1u; step < min(SUBGROUP, LANES); step <<= 1u) {
        total = joined(total, shuffled(total, step));
    }
    if (SUBGROUP < LANES) {
        pairs[local] = total;
        workgroupBarrier();
        let first = local - local % LANES;
        if (SUBGROUP * SUBGROUP >= LANES) {
            total = pairs[first + local % max(LANES / SUBGROUP, 1u) * SUBGROUP];
            for (var step = 1u; step < LANES / SUBGROUP; step <<= 1u) {
                total = joined(total, shuffled(total, step));
            }
        } else {
            for (var step = SUBGROUP; step < LANES; step <<= 1u) {
                if (local % (2u * step) == 0u) {
                    pairs[local] = joined(pairs[local], pairs[local + step]);
                }
                workgroupBarrier();
            }
            total = pairs[first];
        }
        workgroupBarrier();
    }
    if (is_infinite(total.x) || total.y == 0.0) {
        return vec2<f32>(total.x, not_a_number());
    }
    return total;
}
// end shared

// shared row_sum
var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

/// The sum of both values over the lanes of a row, for each of them. All invocations must call it. Neighbours first, then pairs of
/// neighbours, and so on: the same sum to the last bit, whoever makes which part of it.
fn row_sum(local: u32, value: vec2<f32>) -> vec2<f32> {
    var total = value;
    for (var step = 1u; step < min(SUBGROUP, LANES); step <<= 1u) {
        total += shuffled(total, step);
    }
    if (SUBGROUP >= LANES) {
        return total;
    }
    sums[local] = total;
    workgroupBarrier();
    let first = local - local % LANES;
    if (SUBGROUP * SUBGROUP >= LANES) {
        // Few enough for every lane to finish with its neighbours.
        total = sums[first + local % max(LANES / SUBGROUP, 1u) * SUBGROUP];
        for (var step = 1u; step < LANES / SUBGROUP; step <<= 1u) {
            total += shuffled(total, step);
        }
    } else {
        for (var step = SUBGROUP; step < LANES; step <<= 1u) {
            if (local % (2u * step) == 0u) {
                sums[local] += sums[local + step];
            }
            workgroupBarrier();
        }
        total = sums[first];
    }
    workgroupBarrier();
    return total;
}
// end shared

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (group.x + groups.x * (group.y + groups.y * group.z)) * (WORKGROUP / LANES) + local / LANES;
    let lane = local % LANES;
    // Rows past the end take part in the barriers, with nothing.
    let cols = select(0u, params.cols, row < params.rows);
    let start = params.x_offset + row * params.cols;
    var pair = nothing_yet();
    var sum = 0.0;
    for (var i = lane; i < cols; i += LANES) {
        let value = load_elem(x[start + i]);
        pair = with_value(pair, value);
        sum += value;
    }
    pair = row_exponentials(local, pair);
    if (params.spread > 0.0) {
        sum = row_sum(local, vec2<f32>(sum, 0.0)).x;
    }
    if (row >= params.rows || lane != 0u) {
        return;
    }
    let log_sum = logarithm(pair.y);
    lse[params.lse_offset + row] = pair.x + log_sum;
    let class_number = target_class[params.target_offset + row];
    var result = 0.0;
    if (params.can_ignore == 0u || class_number != params.ignored) {
        if (class_number < 0 || class_number >= i32(cols)) {
            if (atomicOr(&fault.state, 1u) == 0u) {
                fault.op = params.op;
                fault.index = class_number;
                fault.size = cols;
            }
            result = not_a_number();
        } else {
            // Not from lse, which has rounded the logarithm away where logits are large.
            result = (log_sum + (pair.x - load_elem(x[start + u32(class_number)]))) * params.hit;
            if (params.spread > 0.0) {
                result += (log_sum + (pair.x - sum / f32(cols))) * params.spread;
            }
        }
    }
    loss[params.loss_offset + row] = store_elem(result);
}
