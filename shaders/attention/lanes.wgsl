// Attention: y = softmax(q k^T scale + mask) v and the log-sum-exp of every row of scores, which are never stored: for adapters in
// software. MASK: 0: none, 1: true takes part, 2: added. CAUSAL: query i sees keys 0..=i.
//
// Bindings: as in attention.wgsl. An invocation has one query and walks over the keys, four at a time, with the largest score, the sum of
// exponentials and the row of y so far (online softmax), all in registers; what is loaded of a key is the same for the workgroup. FULL: rows of q and v
// fill their chunks. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
alias seen = f32;
fn load_seen(x: seen) -> f32 { return x; }
const MASK: u32 = 0u;
const CAUSAL: bool = false;
const D_CHUNKS: u32 = 4u;
const E_CHUNKS: u32 = 4u;
const FULL: bool = false;
// end variant

override WORKGROUP: u32 = 8u;

struct Params {
    q_strides: vec4<u32>,
    k_strides: vec4<u32>,
    v_strides: vec4<u32>,
    mask_strides: vec4<i32>,
    mask_offset: u32,
    heads: u32,
    t: u32,
    s: u32,
    d: u32,
    e: u32,
    scale: f32,
    batches: u32,
}

@group(0) @binding(0) var<storage, read> q: array<elem>;
@group(0) @binding(1) var<storage, read> k: array<elem>;
@group(0) @binding(2) var<storage, read> v: array<elem>;
@group(0) @binding(3) var<storage, read> mask: array<seen>;
@group(0) @binding(4) var<storage, read_write> y: array<elem>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
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
/// e to the power of x: 2^k e^r with |r| <= ln 2 / 2, so that the error does not grow with x.
fn exponential(x: f32) -> f32 {
    if (is_nan(x)) {
        return x;
    }
    if (x > 88.8) {
        return infinity();
    }
    if (x < -104.0) {
        return 0.0;
    }
    let k = round(x * 1.4426950409);
    let r = (x - k * 0.693145751953125) - k * 1.428606765e-6;
    let e = 1.0 + (r + r * r * (0.5 + r * (0.16666667 + r * (0.041666668 + r * (0.0083333333 + r * 0.0013888889)))));
    // Two factors, so that neither leaves the range of f32 before the product does.
    let half = i32(k) / 2;
    let rest = i32(k) - half;
    return e * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(rest + 127) << 23u);
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

// shared score
/// The score of a query and a key from the product of both; minus infinity where the query may not look.
fn score(product: f32, batch: u32, head: u32, query: u32, key: u32) -> f32 {
    if (key >= params.s || (CAUSAL && key > query)) {
        return -infinity();
    }
    var result = product * params.scale;
    if (MASK != 0u) {
        let steps = vec4<i32>(vec4<u32>(batch, head, min(query, params.t - 1u), key)) * params.mask_strides;
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

/// Most vectors of four in a row of q and k, and in one of v.
const D_VECTORS: u32 = 8u * D_CHUNKS;
const E_VECTORS: u32 = 8u * E_CHUNKS;

/// Four neighbours of a row of q, zeros past its end.
fn load_q(start: u32, col: u32) -> vec4<f32> {
    let cols = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let at = start + select(min(cols, vec4<u32>(params.d - 1u)), cols, FULL);
    let four = vec4<f32>(load_elem(q[at.x]), load_elem(q[at.y]), load_elem(q[at.z]), load_elem(q[at.w]));
    return select(vec4<f32>(), four, vec4<bool>(FULL) | (cols < vec4<u32>(params.d)));
}

/// Four neighbours of a row of k, zeros past its end.
fn load_k(start: u32, col: u32) -> vec4<f32> {
    let cols = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let at = start + select(min(cols, vec4<u32>(params.d - 1u)), cols, FULL);
    let four = vec4<f32>(load_elem(k[at.x]), load_elem(k[at.y]), load_elem(k[at.z]), load_elem(k[at.w]));
    return select(vec4<f32>(), four, vec4<bool>(FULL) | (cols < vec4<u32>(params.d)));
}

/// Four neighbours of a row of v, zeros past its end.
fn load_v(start: u32, col: u32) -> vec4<f32> {
    let cols = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let at = start + select(min(cols, vec4<u32>(params.e - 1u)), cols, FULL);
    let four = vec4<f32>(load_elem(v[at.x]), load_elem(v[at.y]), load_elem(v[at.z]), load_elem(v[at.w]));
    return select(vec4<f32>(), four, vec4<bool>(FULL) | (cols < vec4<u32>(params.e)));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let tiles = (params.t + WORKGROUP - 1u) / WORKGROUP;
    let head_number = number / tiles;
    if (head_number >= params.batches * params.heads) {
        return;
    }
    // Not the constants: unrolled loops of that size take drivers seconds to compile.
    let d_vectors = (params.d + 3u) / 4u;
    let e_vectors = (params.e + 3u) / 4u;
    let batch = head_number / params.heads;
    let head = head_number % params.heads;
    let first = (number - head_number * tiles) * WORKGROUP;
    // Invocations past the end repeat the last query and store nothing.
    let query = min(first + local, params.t - 1u);
    let q_start = batch * params.q_strides.x + head * params.q_strides.y + query * params.q_strides.z + params.q_strides.w;
    let k_start = batch * params.k_strides.x + head * params.k_strides.y + params.k_strides.w;
    let v_start = batch * params.v_strides.x + head * params.v_strides.y + params.v_strides.w;

    var own: array<vec4<f32>, D_VECTORS>;
    for (var c = 0u; c < d_vectors; c += 1u) {
        own[c] = load_q(q_start, 4u * c);
    }
    var sums: array<vec4<f32>, E_VECTORS>;
    for (var c = 0u; c < e_vectors; c += 1u) {
        sums[c] = vec4<f32>();
    }
    // Not minus infinity: the difference of two is NaN.
    var largest = -3.4028234e38;
    var total = 0.0;
    var end = params.s;
    if (CAUSAL) {
        end = min(end, first + WORKGROUP);
    }
    for (var key = 0u; key < end; key += 4u) {
        // Past the end the last one stands in, with a score of minus infinity.
        let keys = min(vec4<u32>(key, key + 1u, key + 2u, key + 3u), vec4<u32>(params.s - 1u));
        let rows = k_start + keys * params.k_strides.z;
        var products = vec4<f32>();
        for (var c = 0u; c < d_vectors; c += 1u) {
            let a = own[c];
            products += vec4<f32>(
                dot(a, load_k(rows.x, 4u * c)),
                dot(a, load_k(rows.y, 4u * c)),
                dot(a, load_k(rows.z, 4u * c)),
                dot(a, load_k(rows.w, 4u * c)),
            );
        }
        let scores = vec4<f32>(
            score(products.x, batch, head, query, key),
            score(products.y, batch, head, query, key + 1u),
            score(products.z, batch, head, query, key + 2u),
            score(products.w, batch, head, query, key + 3u),
        );
        let now = max(max(max(scores.x, scores.y), max(scores.z, scores.w)), largest);
        let factor = exponential(largest - now);
        largest = now;
        let p = vec4<f32>(
            exponential(scores.x - now), exponential(scores.y - now), exponential(scores.z - now), exponential(scores.w - now),
        );
        total = total * factor + (p.x + p.y + p.z + p.w);
        let values = v_start + keys * params.v_strides.z;
        for (var c = 0u; c < e_vectors; c += 1u) {
            sums[c] = fma(vec4<f32>(p.w), load_v(values.w, 4u * c),
                fma(vec4<f32>(p.z), load_v(values.z, 4u * c),
                fma(vec4<f32>(p.y), load_v(values.y, 4u * c),
                fma(vec4<f32>(p.x), load_v(values.x, 4u * c), sums[c] * factor))));
        }
    }
    if (first + local >= params.t) {
        return;
    }
    let at = head_number * params.t + query;
    var factor = 1.0 / total;
    var log_sum = largest + logarithm(total);
    if (total == 0.0) {
        // Nothing to see: zeros if that is the mask's doing, else the softmax of nothing but minus infinities.
        factor = select(not_a_number(), 0.0, MASK != 0u);
        log_sum = select(not_a_number(), -infinity(), MASK != 0u);
    }
    lse[at] = log_sum;
    for (var c = 0u; c < e_vectors; c += 1u) {
        let result = sums[c] * factor;
        for (var j = 0u; j < 4u; j += 1u) {
            if (4u * c + j < params.e) {
                y[at * params.e + 4u * c + j] = store_elem(result[j]);
            }
        }
    }
}
