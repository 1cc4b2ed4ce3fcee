// The gradient of attention's queries: dq = (p (g v^T - delta)) k scale, the probabilities p computed again from the log-sum-exp: for
// adapters in software. MASK: 0: none, 1: true takes part, 2: added. CAUSAL: query i sees keys 0..=i.
//
// Bindings: as in queries_grad.wgsl. An invocation has one query and walks over the keys, four at a time, with its rows of q, g and dq in
// registers; what is loaded of a key is the same for the workgroup. FULL: rows of q and v fill their
// chunks. No workgroup memory.

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
    g_offset: u32,
}

@group(0) @binding(0) var<storage, read> q: array<elem>;
@group(0) @binding(1) var<storage, read> k: array<elem>;
@group(0) @binding(2) var<storage, read> v: array<elem>;
@group(0) @binding(3) var<storage, read> mask: array<seen>;
@group(0) @binding(4) var<storage, read> g: array<elem>;
@group(0) @binding(5) var<storage, read> statistics: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<elem>;
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

/// Four neighbours of a row of g, zeros past its end.
fn load_g(start: u32, col: u32) -> vec4<f32> {
    let cols = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let at = start + select(min(cols, vec4<u32>(params.e - 1u)), cols, FULL);
    let four = vec4<f32>(load_elem(g[at.x]), load_elem(g[at.y]), load_elem(g[at.z]), load_elem(g[at.w]));
    return select(vec4<f32>(), four, vec4<bool>(FULL) | (cols < vec4<u32>(params.e)));
}

/// A probability from its score; rows that see nothing and rows past the end have a log-sum-exp of minus infinity.
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
    // Invocations past the end repeat the last one and store nothing.
    let query = min(first + local, params.t - 1u);
    let q_start = batch * params.q_strides.x + head * params.q_strides.y + params.q_strides.w;
    let k_start = batch * params.k_strides.x + head * params.k_strides.y + params.k_strides.w;
    let v_start = batch * params.v_strides.x + head * params.v_strides.y + params.v_strides.w;
    let rows_start = head_number * params.t;
    let g_start = params.g_offset + rows_start * params.e;

    let of_row = statistics[rows_start + query];
    var own_q: array<vec4<f32>, D_VECTORS>;
    var sums: array<vec4<f32>, D_VECTORS>;
    for (var c = 0u; c < d_vectors; c += 1u) {
        own_q[c] = load_q(q_start + query * params.q_strides.z, 4u * c);
        sums[c] = vec4<f32>();
    }
    var own_g: array<vec4<f32>, E_VECTORS>;
    for (var c = 0u; c < e_vectors; c += 1u) {
        own_g[c] = load_g(g_start + query * params.e, 4u * c);
    }
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
            let a = own_q[c];
            products += vec4<f32>(
                dot(a, load_k(rows.x, 4u * c)),
                dot(a, load_k(rows.y, 4u * c)),
                dot(a, load_k(rows.z, 4u * c)),
                dot(a, load_k(rows.w, 4u * c)),
            );
        }
        let values = v_start + keys * params.v_strides.z;
        var changes = vec4<f32>();
        for (var c = 0u; c < e_vectors; c += 1u) {
            let a = own_g[c];
            changes += vec4<f32>(
                dot(a, load_v(values.x, 4u * c)),
                dot(a, load_v(values.y, 4u * c)),
                dot(a, load_v(values.z, 4u * c)),
                dot(a, load_v(values.w, 4u * c)),
            );
        }
        let p = vec4<f32>(
            probability(score(products.x, batch, head, query, key), of_row.x),
            probability(score(products.y, batch, head, query, key + 1u), of_row.x),
            probability(score(products.z, batch, head, query, key + 2u), of_row.x),
            probability(score(products.w, batch, head, query, key + 3u), of_row.x),
        );
        let w = p * (changes - of_row.y) * params.scale;
        for (var c = 0u; c < d_vectors; c += 1u) {
            sums[c] += w.x * load_k(rows.x, 4u * c) + w.y * load_k(rows.y, 4u * c)
                + w.z * load_k(rows.z, 4u * c) + w.w * load_k(rows.w, 4u * c);
        }
    }
    if (first + local >= params.t) {
        return;
    }
    for (var c = 0u; c < d_vectors; c += 1u) {
        for (var j = 0u; j < 4u; j += 1u) {
            if (4u * c + j < params.d) {
                dq[(rows_start + query) * params.d + 4u * c + j] = store_elem(sums[c][j]);
            }
        }
    }
}
