// Attention: y = softmax(q k^T scale + mask) v and the log-sum-exp of every row of scores, which are never stored.
// MASK: 0: none, 1: true takes part, 2: added. CAUSAL: query i sees keys 0..=i.
//
// Bindings: 0: q [b, h, t, d], 1: k [b, h, s, d], 2: v [b, h, s, e], 3: mask [b, h, t, s] (anything without MASK), 4: y [b, h, t, e],
// 5: lse [b, h, t]. A workgroup of 8 x (ROWS / 4) invocations has ROWS queries of a head and walks over the keys, 32 at a time, with the
// largest score and the sum of exponentials so far (online softmax); an invocation has 4 x 4 scores and 4 rows of 4 columns of each
// 32 of y. Workgroup memory: 144 bytes (2 ROWS + 32).

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
// end variant

override ROWS: u32 = 32u;
override WORKGROUP: u32 = 64u;

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

// shared tiles of attention
/// Rows and columns of tiles, and vectors of four in a row of one; the ninth keeps rows of a tile in different banks.
const TILE: u32 = 32u;
const VECTORS: u32 = 9u;
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

/// Four neighbours of a row of q, zeros past its ends.
fn load_q(start: u32, row: u32, col: u32) -> vec4<f32> {
    var result = vec4<f32>(0.0);
    if (row < params.t) {
        let at = start + row * params.q_strides.z + col;
        for (var i = 0u; i < 4u; i += 1u) {
            if (col + i < params.d) {
                result[i] = load_elem(q[at + i]);
            }
        }
    }
    return result;
}

/// Four neighbours of a row of k, zeros past its ends.
fn load_k(start: u32, row: u32, col: u32) -> vec4<f32> {
    var result = vec4<f32>(0.0);
    if (row < params.s) {
        let at = start + row * params.k_strides.z + col;
        for (var i = 0u; i < 4u; i += 1u) {
            if (col + i < params.d) {
                result[i] = load_elem(k[at + i]);
            }
        }
    }
    return result;
}

/// Four neighbours of a row of v, zeros past its ends.
fn load_v(start: u32, row: u32, col: u32) -> vec4<f32> {
    var result = vec4<f32>(0.0);
    if (row < params.s) {
        let at = start + row * params.v_strides.z + col;
        for (var i = 0u; i < 4u; i += 1u) {
            if (col + i < params.e) {
                result[i] = load_elem(v[at + i]);
            }
        }
    }
    return result;
}

/// A tile of q, then probabilities; a tile of k, then of v.
var<workgroup> queries: array<vec4<f32>, ROWS * VECTORS>;
var<workgroup> keys: array<vec4<f32>, 32u * VECTORS>;
var<workgroup> weights: array<vec4<f32>, ROWS * VECTORS>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let tiles = (params.t + ROWS - 1u) / ROWS;
    let head_number = number / tiles;
    // Workgroups past the end repeat the last head and store nothing.
    let outside = head_number >= params.batches * params.heads;
    let batch = min(head_number / params.heads, params.batches - 1u);
    let head = head_number % params.heads;
    let first = (number - head_number * tiles) * ROWS;
    let q_start = batch * params.q_strides.x + head * params.q_strides.y + params.q_strides.w;
    let k_start = batch * params.k_strides.x + head * params.k_strides.y + params.k_strides.w;
    let v_start = batch * params.v_strides.x + head * params.v_strides.y + params.v_strides.w;
    let column = local % 8u;
    let row = local / 8u * 4u;

    var sums: array<vec4<f32>, 4u * E_CHUNKS>;
    for (var i = 0u; i < 4u * E_CHUNKS; i += 1u) {
        sums[i] = vec4<f32>(0.0);
    }
    // Not minus infinity: the difference of two is NaN.
    var largest = vec4<f32>(-3.4028234e38);
    var total = vec4<f32>(0.0);
    var end = params.s;
    if (CAUSAL) {
        end = min(end, first + ROWS);
    }
    for (var key = 0u; key < end; key += TILE) {
        var products: array<vec4<f32>, 4>;
        for (var i = 0u; i < 4u; i += 1u) {
            products[i] = vec4<f32>(0.0);
        }
        for (var c = 0u; c < D_CHUNKS; c += 1u) {
            workgroupBarrier();
            for (var i = local; i < ROWS * 8u; i += WORKGROUP) {
                queries[i / 8u * VECTORS + i % 8u] = load_q(q_start, first + i / 8u, c * TILE + i % 8u * 4u);
            }
            for (var i = local; i < TILE * 8u; i += WORKGROUP) {
                keys[i / 8u * VECTORS + i % 8u] = load_k(k_start, key + i / 8u, c * TILE + i % 8u * 4u);
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u; i += 1u) {
                let k0 = keys[column * VECTORS + i];
                let k1 = keys[(column + 8u) * VECTORS + i];
                let k2 = keys[(column + 16u) * VECTORS + i];
                let k3 = keys[(column + 24u) * VECTORS + i];
                for (var r = 0u; r < 4u; r += 1u) {
                    let a = queries[(row + r) * VECTORS + i];
                    products[r] += vec4<f32>(dot(a, k0), dot(a, k1), dot(a, k2), dot(a, k3));
                }
            }
        }
        // The largest score of a row is spread over eight invocations.
        for (var r = 0u; r < 4u; r += 1u) {
            var scores = products[r];
            for (var j = 0u; j < 4u; j += 1u) {
                scores[j] = score(scores[j], batch, head, first + row + r, key + column + 8u * j);
            }
            products[r] = scores;
            weights[(row + r) * VECTORS + column] = scores;
        }
        workgroupBarrier();
        var factors = vec4<f32>(1.0);
        for (var r = 0u; r < 4u; r += 1u) {
            var most = weights[(row + r) * VECTORS];
            for (var i = 1u; i < 8u; i += 1u) {
                most = max(most, weights[(row + r) * VECTORS + i]);
            }
            let now = max(max(max(most.x, most.y), max(most.z, most.w)), largest[r]);
            factors[r] = exponential(largest[r] - now);
            largest[r] = now;
        }
        workgroupBarrier();
        for (var r = 0u; r < 4u; r += 1u) {
            let shifted = products[r] - largest[r];
            weights[(row + r) * VECTORS + column] = vec4<f32>(
                exponential(shifted.x), exponential(shifted.y), exponential(shifted.z), exponential(shifted.w),
            );
        }
        total *= factors;
        for (var c = 0u; c < E_CHUNKS; c += 1u) {
            workgroupBarrier();
            for (var i = local; i < TILE * 8u; i += WORKGROUP) {
                // In the order of `weights`: the four scores of an invocation lie eight keys apart.
                let place = i / 8u % 8u * 4u + i / 64u;
                keys[place * VECTORS + i % 8u] = load_v(v_start, key + i / 8u, c * TILE + i % 8u * 4u);
            }
            workgroupBarrier();
            for (var r = 0u; r < 4u; r += 1u) {
                sums[c * 4u + r] *= factors[r];
            }
            for (var i = 0u; i < 8u; i += 1u) {
                let v0 = keys[(i * 4u) * VECTORS + column];
                let v1 = keys[(i * 4u + 1u) * VECTORS + column];
                let v2 = keys[(i * 4u + 2u) * VECTORS + column];
                let v3 = keys[(i * 4u + 3u) * VECTORS + column];
                for (var r = 0u; r < 4u; r += 1u) {
                    let p = weights[(row + r) * VECTORS + i];
                    sums[c * 4u + r] += p.x * v0 + p.y * v1 + p.z * v2 + p.w * v3;
                    if (c == 0u) {
                        total[r] += p.x + p.y + p.z + p.w;
                    }
                }
            }
        }
    }
    if (outside) {
        return;
    }
    for (var r = 0u; r < 4u; r += 1u) {
        let query = first + row + r;
        if (query >= params.t) {
            continue;
        }
        let at = head_number * params.t + query;
        var factor = 1.0 / total[r];
        var log_sum = largest[r] + logarithm(total[r]);
        if (total[r] == 0.0) {
            // Nothing to see: zeros if that is the mask's doing, else the softmax of nothing but minus infinities.
            factor = select(not_a_number(), 0.0, MASK != 0u);
            log_sum = select(not_a_number(), -infinity(), MASK != 0u);
        }
        if (column == 0u) {
            lse[at] = log_sum;
        }
        for (var c = 0u; c < E_CHUNKS; c += 1u) {
            let result = sums[c * 4u + r] * factor;
            for (var j = 0u; j < 4u; j += 1u) {
                let col = c * TILE + column * 4u + j;
                if (col < params.e) {
                    y[at * params.e + col] = store_elem(result[j]);
                }
            }
        }
    }
}
