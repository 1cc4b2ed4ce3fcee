// Weights of attention again, and the gradients of its scores: p = e^(score - lse) from the products of queries and keys, and
// p (changes - delta) scale from the products of y's gradient and values, both in place: for adapters in software. MASK and CAUSAL as in
// weights.wgsl.
//
// Bindings: 0: mask (anything if MASK is 0), 1: statistics [b, h, t, 2]: log-sum-exp and delta, 2: products [count, t_count, s_count], for the heads
// from `first_head`, the queries from `first_query` and the keys from `first_key` on, 3: changes, alike. ITEMS elements per
// invocation. No workgroup memory.

// variant
alias seen = f32;
fn load_seen(x: seen) -> f32 { return x; }
const MASK: u32 = 0u;
const CAUSAL: bool = false;
// end variant

override WORKGROUP: u32 = 256u;
/// Elements per invocation.
override ITEMS: u32 = 1u;

struct Params {
    mask_strides: vec4<i32>,
    mask_offset: u32,
    heads: u32,
    t: u32,
    scale: f32,
    first_head: u32,
    first_query: u32,
    t_count: u32,
    first_key: u32,
    s_count: u32,
    n: u32,
}

@group(0) @binding(0) var<storage, read> mask: array<seen>;
@group(0) @binding(1) var<storage, read> statistics: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> products: array<f32>;
@group(0) @binding(3) var<storage, read_write> changes: array<f32>;
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

/// A probability from its score; rows that see nothing have a log-sum-exp of minus infinity.
fn probability(score: f32, log_sum: f32) -> f32 {
    if (is_infinite(score) && score < 0.0 && !is_nan(log_sum)) {
        return 0.0;
    }
    return exponential(score - log_sum);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP * ITEMS;
    let end = min(params.n, first + WORKGROUP * ITEMS);
    for (var i = first + local; i < end; i += WORKGROUP) {
        let row = i / params.s_count;
        let head_number = params.first_head + row / params.t_count;
        let query = params.first_query + row % params.t_count;
        let key = params.first_key + i % params.s_count;
        let of_row = statistics[head_number * params.t + query];
        let p = probability(score(products[i], head_number, query, key), of_row.x);
        products[i] = p;
        changes[i] = p * (changes[i] - of_row.y) * params.scale;
    }
}
