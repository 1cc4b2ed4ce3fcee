// Weights of attention from the products of queries and keys, in place: softmax(products scale + mask) over the keys, and the
// log-sum-exp of every row: for adapters in software, which multiply matrices faster than they run the tiles of attention.wgsl. MASK:
// 0: none, 1: true takes part, 2: added. CAUSAL: query i sees keys 0..=i.
//
// Bindings: 0: mask (anything if MASK is 0), 1: products [count, t_count, s], for the heads from `first_head` and the queries from `first_query` on,
// 2: lse [b, h, t]. LANES invocations walk a row. Workgroup memory: 4 bytes per invocation.

// variant
alias seen = f32;
fn load_seen(x: seen) -> f32 { return x; }
const MASK: u32 = 0u;
const CAUSAL: bool = false;
// end variant

/// Lanes per row; the workgroup has WORKGROUP / LANES rows.
override LANES: u32 = 8u;
override WORKGROUP: u32 = 8u;

struct Params {
    mask_strides: vec4<i32>,
    mask_offset: u32,
    heads: u32,
    t: u32,
    s: u32,
    scale: f32,
    first_head: u32,
    first_query: u32,
    t_count: u32,
    rows: u32,
}

@group(0) @binding(0) var<storage, read> mask: array<seen>;
@group(0) @binding(1) var<storage, read_write> products: array<f32>;
@group(0) @binding(2) var<storage, read_write> lse: array<f32>;
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

// shared masked score
/// The score of a query and a key from the product of both; minus infinity where the query may not look.
fn score(product: f32, head_number: u32, query: u32, key: u32) -> f32 {
    if (CAUSAL && key > query) {
        return -infinity();
    }
    var result = product * params.scale;
    if (MASK != 0u) {
        let at = vec4<u32>(head_number / params.heads, head_number % params.heads, query, key);
        let steps = vec4<i32>(at) * params.mask_strides;
        let value = f32(load_seen(mask[u32(i32(params.mask_offset) + steps.x + steps.y + steps.z + steps.w)]));
        if (MASK == 2u) {
            result += value;
        } else if (value == 0.0) {
            result = -infinity();
        }
    }
    return result;
}
// end shared

var<workgroup> parts: array<f32, WORKGROUP>;

/// Of all lanes of a row the largest value, or the sum. All invocations must call it.
fn over_lanes(local: u32, value: f32, largest: bool) -> f32 {
    parts[local] = value;
    workgroupBarrier();
    let first = local - local % LANES;
    var result = parts[first];
    for (var i = 1u; i < LANES; i += 1u) {
        let other = parts[first + i];
        result = select(result + other, max(result, other), largest);
    }
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (group.x + groups.x * (group.y + groups.y * group.z)) * (WORKGROUP / LANES) + local / LANES;
    let lane = local % LANES;
    let head_number = params.first_head + row / params.t_count;
    let query = params.first_query + row % params.t_count;
    // Rows past the end take part in the barriers, with nothing.
    let count = select(0u, params.s, row < params.rows);
    // What the query may look at, as far as that is a number of keys.
    let seen_count = select(count, min(count, query + 1u), CAUSAL);
    let start = row * params.s;
    // Not minus infinity: the difference of two is NaN.
    var largest = -3.4028234e38;
    for (var key = lane; key < seen_count; key += LANES) {
        largest = max(largest, score(products[start + key], head_number, query, key));
    }
    largest = over_lanes(local, largest, true);
    var total = 0.0;
    for (var key = lane; key < seen_count; key += LANES) {
        let value = exponential(score(products[start + key], head_number, query, key) - largest);
        products[start + key] = value;
        total += value;
    }
    total = over_lanes(local, total, false);
    var factor = 1.0 / total;
    var log_sum = largest + logarithm(total);
    if (total == 0.0) {
        // Nothing to see: zeros if that is the mask's doing, else the softmax of nothing but minus infinities.
        factor = select(not_a_number(), 0.0, MASK != 0u);
        log_sum = select(not_a_number(), -infinity(), MASK != 0u);
    }
    for (var key = lane; key < count; key += LANES) {
        products[start + key] = select(0.0, products[start + key] * factor, key < seen_count);
    }
    if (lane == 0u && row < params.rows) {
        lse[head_number * params.t + query] = log_sum;
    }
}
