// The gradient of attention's queries: dq = (p (g v^T - delta)) k scale, the probabilities p computed again from the log-sum-exp.
// MASK: 0: none, 1: true takes part, 2: added. CAUSAL: query i sees keys 0..=i.
//
// Bindings: 0: q [b, h, t, d], 1: k [b, h, s, d], 2: v [b, h, s, e], 3: mask [b, h, t, s] (anything without MASK), 4: g [b, h, t, e],
// 5: statistics [b, h, t]: lse and delta = sum(g y), 6: dq. A workgroup of 8 x (ROWS / 4) invocations has ROWS queries of a
// head and walks over the keys, 32 at a time. Workgroup memory: 144 bytes (2 ROWS + 32).

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

/// Four neighbours of a row of g, zeros past its ends.
fn load_g(start: u32, row: u32, col: u32) -> vec4<f32> {
    var result = vec4<f32>(0.0);
    if (row < params.t) {
        let at = start + row * params.e + col;
        for (var i = 0u; i < 4u; i += 1u) {
            if (col + i < params.e) {
                result[i] = load_elem(g[at + i]);
            }
        }
    }
    return result;
}

/// A tile of the rows that the workgroup has, one of those it walks over, and what these are multiplied with.
var<workgroup> own: array<vec4<f32>, ROWS * VECTORS>;
var<workgroup> others: array<vec4<f32>, 32u * VECTORS>;
var<workgroup> weights: array<vec4<f32>, ROWS * VECTORS>;

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
    let tiles = (params.t + ROWS - 1u) / ROWS;
    let head_number = number / tiles;
    // Workgroups past the end repeat the last batch and store nothing.
    let outside = head_number >= params.batches * params.heads;
    let batch = min(head_number / params.heads, params.batches - 1u);
    let head = head_number % params.heads;
    let first = (number - head_number * tiles) * ROWS;
    let q_start = batch * params.q_strides.x + head * params.q_strides.y + params.q_strides.w;
    let k_start = batch * params.k_strides.x + head * params.k_strides.y + params.k_strides.w;
    let v_start = batch * params.v_strides.x + head * params.v_strides.y + params.v_strides.w;
    let rows_start = (batch * params.heads + head) * params.t;
    let g_start = params.g_offset + rows_start * params.e;
    let column = local % 8u;
    let row = local / 8u * 4u;

    var row_lse = vec4<f32>(-infinity());
    var row_delta = vec4<f32>(0.0);
    for (var r = 0u; r < 4u; r += 1u) {
        if (first + row + r < params.t) {
            let of_row = statistics[rows_start + first + row + r];
            row_lse[r] = of_row.x;
            row_delta[r] = of_row.y;
        }
    }
    var sums: array<vec4<f32>, 4u * D_CHUNKS>;
    for (var i = 0u; i < 4u * D_CHUNKS; i += 1u) {
        sums[i] = vec4<f32>(0.0);
    }
    var end = params.s;
    if (CAUSAL) {
        end = min(end, first + ROWS);
    }
    for (var key = 0u; key < end; key += TILE) {
        var scores: array<vec4<f32>, 4u>;
        for (var i = 0u; i < 4u; i += 1u) {
            scores[i] = vec4<f32>(0.0);
        }
        var changes: array<vec4<f32>, 4u>;
        for (var i = 0u; i < 4u; i += 1u) {
            changes[i] = vec4<f32>(0.0);
        }
        for (var c = 0u; c < D_CHUNKS; c += 1u) {
            workgroupBarrier();
            for (var i = local; i < ROWS * 8u; i += WORKGROUP) {
                own[i / 8u * VECTORS + i % 8u] = load_q(q_start, first + i / 8u, c * TILE + i % 8u * 4u);
            }
            for (var i = local; i < TILE * 8u; i += WORKGROUP) {
                others[i / 8u * VECTORS + i % 8u] = load_k(k_start, key + i / 8u, c * TILE + i % 8u * 4u);
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u; i += 1u) {
                let b0 = others[column * VECTORS + i];
                let b1 = others[(column + 8u) * VECTORS + i];
                let b2 = others[(column + 16u) * VECTORS + i];
                let b3 = others[(column + 24u) * VECTORS + i];
                for (var r = 0u; r < 4u; r += 1u) {
                    let a = own[(row + r) * VECTORS + i];
                    scores[r] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
                }
            }
        }
        for (var c = 0u; c < E_CHUNKS; c += 1u) {
            workgroupBarrier();
            for (var i = local; i < ROWS * 8u; i += WORKGROUP) {
                own[i / 8u * VECTORS + i % 8u] = load_g(g_start, first + i / 8u, c * TILE + i % 8u * 4u);
            }
            for (var i = local; i < TILE * 8u; i += WORKGROUP) {
                others[i / 8u * VECTORS + i % 8u] = load_v(v_start, key + i / 8u, c * TILE + i % 8u * 4u);
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u; i += 1u) {
                let b0 = others[column * VECTORS + i];
                let b1 = others[(column + 8u) * VECTORS + i];
                let b2 = others[(column + 16u) * VECTORS + i];
                let b3 = others[(column + 24u) * VECTORS + i];
                for (var r = 0u; r < 4u; r += 1u) {
                    let a = own[(row + r) * VECTORS + i];
                    changes[r] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
                }
            }
        }
        for (var r = 0u; r < 4u; r += 1u) {
            var change = vec4<f32>(0.0);
            for (var j = 0u; j < 4u; j += 1u) {
                let s = score(scores[r][j], batch, head, first + row + r, key + column + 8u * j);
                change[j] = probability(s, row_lse[r]) * (changes[r][j] - row_delta[r]) * params.scale;
            }
            weights[(row + r) * VECTORS + column] = change;
        }
        for (var c = 0u; c < D_CHUNKS; c += 1u) {
            workgroupBarrier();
            for (var i = local; i < TILE * 8u; i += WORKGROUP) {
                // In the order of `weights`: the four of an invocation lie eight rows apart.
                let place = i / 8u % 8u * 4u + i / 64u;
                others[place * VECTORS + i % 8u] = load_k(k_start, key + i / 8u, c * TILE + i % 8u * 4u);
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u; i += 1u) {
                let b0 = others[(i * 4u) * VECTORS + column];
                let b1 = others[(i * 4u + 1u) * VECTORS + column];
                let b2 = others[(i * 4u + 2u) * VECTORS + column];
                let b3 = others[(i * 4u + 3u) * VECTORS + column];
                for (var r = 0u; r < 4u; r += 1u) {
                    let w = weights[(row + r) * VECTORS + i];
                    sums[c * 4u + r] += w.x * b0 + w.y * b1 + w.z * b2 + w.w * b3;
                }
            }
        }
    }
    if (outside) {
        return;
    }
    for (var r = 0u; r < 4u; r += 1u) {
        if (first + row + r >= params.t) {
            continue;
        }
        for (var c = 0u; c < D_CHUNKS; c += 1u) {
            for (var j = 0u; j < 4u; j += 1u) {
                let col = c * TILE + column * 4u + j;
                if (col < params.d) {
                    dq[(head_number * params.t + first + row + r) * params.d + col] = store_elem(sums[c * 4u + r][j]);
                }
            }
        }
    }
}
