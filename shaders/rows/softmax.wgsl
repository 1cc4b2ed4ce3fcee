// y = softmax of each row of x, or its logarithm if LOG.
//
// Bindings: 0: x, 1: y, both [rows, cols]. LANES invocations walk a row twice: largest value and sum of exponentials in one go, then
// the result. Workgroup memory: 8 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const LOG: bool = false;
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
    y_offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
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
    for (var i = lane; i < cols; i += LANES) {
        pair = with_value(pair, load_elem(x[start + i]));
    }
    pair = row_exponentials(local, pair);
    let to = params.y_offset + row * params.cols;
    let factor = 1.0 / pair.y;
    var log_sum = 0.0;
    if (LOG) {
        log_sum = logarithm(pair.y);
    }
    for (var i = lane; i < cols; i += LANES) {
        let shifted = load_elem(x[start + i]) - pair.x;
        if (LOG) {
            y[to + i] = store_elem(shifted - log_sum);
        } else {
            y[to + i] = store_elem(exponential(shifted) * factor);
        }
    }
}
