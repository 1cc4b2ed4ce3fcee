// y = activation(a b + bias) for batches of matrices with any strides, without workgroup memory: for adapters in software, where
// barriers are dear, arithmetic is nearly free, and an element of a that all lanes share is one load.
//
// Bindings: 0: a, 1: b, 2: bias (a again if there is none), 3: y. One workgroup of LANES invocations computes ROWS rows (4, 8 or
// 16) by 4 LANES columns, 4 columns each: many rows, since what differs between lanes costs one load per lane. No workgroup memory.

// variant
alias a_elem = f32;
fn load_a_elem(x: a_elem) -> f32 { return x; }
alias b_elem = f32;
fn load_b_elem(x: b_elem) -> f32 { return x; }
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
alias y_elem = f32;
fn store_y_elem(x: f32) -> y_elem { return x; }
fn activation(x: f32) -> f32 { return x; }
const A_VEC: bool = false;
const A_ALONG_K: bool = true;
const B_VEC: bool = false;
const ROWS: u32 = 16u;
/// Whether k is no multiple of 4.
const TAIL: bool = true;
// end variant

const LANES: u32 = 8u;

// shared matmul parameters
struct Params {
    // Of the outer and the inner batch dimension, of a row and along k.
    a_strides: vec4<i32>,
    // Of the outer and the inner batch dimension, of a column and along k.
    b_strides: vec4<i32>,
    // Of the outer and the inner batch dimension, of a row and of a column.
    y_strides: vec4<i32>,
    // Of the inner batch dimension, of a row and of a column; the last is 1 if there is a bias, else 0.
    bias_strides: vec4<i32>,
    m: u32,
    n: u32,
    k: u32,
    inner: u32,
    a_offset: u32,
    b_offset: u32,
    y_offset: u32,
    bias_offset: u32,
    batches: u32,
    // Elements of k that one workgroup takes, and how many such parts there are.
    k_part: u32,
    parts: u32,
    // Distance of the results of parts.
    part_stride: u32,
    // Parameters of the activation.
    p: f32,
    q: f32,
}
// end shared

@group(0) @binding(0) var<storage, read> a: array<a_elem>;
@group(0) @binding(1) var<storage, read> b: array<b_elem>;
@group(0) @binding(2) var<storage, read> bias: array<elem>;
@group(0) @binding(3) var<storage, read_write> y: array<y_elem>;
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

// shared arctangent
/// atan of t in [0, 1]: reduced to [0, tan(pi/12)], then its series.
fn arctangent(t: f32) -> f32 {
    var x = t;
    var base = 0.0;
    if (t > 0.2679491924) {
        x = (t * 1.7320508076 - 1.0) / (t + 1.7320508076);
        base = 0.5235987756;
    }
    let x2 = x * x;
    let series = x2 * (-0.3333333333 + x2 * (0.2 + x2 * (-0.1428571429 + x2 * (0.1111111111 - x2 * 0.0909090909))));
    return base + (x + x * series);
}
// end shared

// shared parts
/// a = m 2^e with m in [1/sqrt 2, sqrt 2).
fn parts(a: f32) -> vec2<f32> {
    var x = a;
    var e = 0.0;
    if (x < 1.17549435e-38) {
        x *= 16777216.0;
        e = -24.0;
    }
    let bits = bitcast<u32>(x);
    let shifted = bits + 0x004afb0du;
    let exponent = i32(shifted >> 23u) - 127;
    return vec2<f32>(bitcast<f32>(bits - (u32(exponent) << 23u)), e + f32(exponent));
}
// end shared

// shared math
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
    return e * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(rest + 127) << 23u);
}

/// e^x - 1, exact for small x.
fn exponential_minus_one(x: f32) -> f32 {
    if (abs(x) > 0.5) {
        return exponential(x) - 1.0;
    }
    return x + x * x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * (0.0083333333 + x * (0.0013888889 + x * (0.0001984127 + x * 2.4801587e-5))))));
}

/// ln(x) = e ln 2 + ln(m), the first in x, the second in y.
fn logarithms(x: f32) -> vec2<f32> {
    let split = parts(x);
    let s = (split.x - 1.0) / (split.x + 1.0);
    let q = s * s;
    let series = q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * 0.09090909))));
    return vec2<f32>(split.y, 2.0 * (s + s * series));
}

/// e a + m b for the parts of a logarithm, a in two parts; what is not positive and finite is answered here.
fn scaled_logarithm(x: f32, a_high: f32, a_low: f32, b: f32) -> f32 {
    if (x <= 0.0) {
        return select(not_a_number(), -infinity(), x == 0.0);
    }
    if (is_infinite(x)) {
        return x;
    }
    let l = logarithms(x);
    return l.x * a_high + (l.y * b + l.x * a_low);
}

fn logarithm(x: f32) -> f32 {
    return scaled_logarithm(x, 0.693145751953125, 1.428606765e-6, 1.0);
}

/// ln(1 + x), exact for small x: 2 atanh(x / (2 + x)).
fn logarithm_of_one_plus(x: f32) -> f32 {
    if (abs(x) > 0.5) {
        return logarithm(1.0 + x);
    }
    let s = x / (2.0 + x);
    let q = s * s;
    return 2.0 * (s + s * q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * (0.09090909 + q * 0.07692308))))));
}

fn hyperbolic_tangent(x: f32) -> f32 {
    let a = abs(x);
    var t = 1.0;
    if (a < 0.25) {
        let e = exponential_minus_one(2.0 * a);
        t = e / (e + 2.0);
    } else if (a < 10.0) {
        t = 1.0 - 2.0 / (exponential(2.0 * a) + 1.0);
    }
    return select(t, -t, x < 0.0);
}

fn sigmoid(x: f32) -> f32 {
    // Of e^x and e^-x the one that does not overflow.
    let e = exponential(-abs(x));
    return select(1.0, e, x < 0.0) / (1.0 + e);
}

fn log_sigmoid(x: f32) -> f32 {
    return min(x, 0.0) - logarithm_of_one_plus(exponential(-abs(x)));
}

/// The error function: near zero a rational approximation of W. J. Cody, Mathematics of Computation 23 (1969).
fn error_function(x: f32) -> f32 {
    let a = abs(x);
    if (a <= 0.5) {
        let q = x * x;
        let over = 3209.3774 + q * (377.48523 + q * (113.86415 + q * (3.1611238 + q * 0.1857777)));
        let under = 2844.2368 + q * (1282.6165 + q * (244.02464 + q * (23.601291 + q)));
        return x * over / under;
    }
    let e = 1.0 - exponential(-a * a) * scaled_complement(a);
    return select(e, -e, x < 0.0);
}

/// (1 - erf(a)) e^(a^2) for a >= 0: t times a polynomial in t = 1 / (1 + 0.3 a), fitted to a relative error of 2e-8.
fn scaled_complement(a: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3 * a);
    return t * (0.169189354 + t * (0.170690931 + t * (0.148521238 + t * (0.214181489 + t * (-0.0928262074 + t * (0.544967195 + t * (-0.509772609 + t * (0.484301845 - t * 0.129253245))))))));
}

/// The normal distribution function, to full relative precision in its lower tail: x^2 is exact as a product and a small rest.
fn normal_cdf(x: f32) -> f32 {
    let a = min(abs(x), 16.0);
    let high = bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
    let low = -0.5 * ((a - high) * (a + high));
    let e = exponential(-0.5 * high * high) * (1.0 + (low + low * low * (0.5 + low * 0.16666667)));
    let tail = 0.5 * e * scaled_complement(0.7071067812 * a);
    return select(1.0 - tail, tail, x < 0.0);
}

/// Sine and cosine, x brought into [-pi/4, pi/4] by a three-part pi/2.
fn sine_and_cosine(x: f32) -> vec2<f32> {
    let k = round(x * 0.6366197724);
    let r = ((x - k * 1.5703125) - k * 4.837512969970703e-4) - k * 7.549789955e-8;
    let q = r * r;
    let s = r + r * q * (-0.16666667 + q * (0.0083333333 + q * (-0.0001984127 + q * 2.7557319e-6)));
    let c = 1.0 - q * (0.5 - q * (0.041666668 - q * (0.0013888889 - q * 2.4801587e-5)));
    // The quadrant: k modulo 4, for any k.
    let quadrant = whole(k - 4.0 * floor(k * 0.25));
    let swapped = select(vec2<f32>(s, c), vec2<f32>(c, s), (quadrant & 1) == 1);
    return select(swapped, -swapped, vec2<bool>((quadrant & 2) == 2, quadrant == 1 || quadrant == 2));
}

fn gelu_inner(x: f32) -> f32 {
    return 0.7978845608 * (x + 0.044715 * x * x * x);
}

/// The function with number `op`; p and q are its parameters.
fn function(op: u32, x: f32, p: f32, q: f32) -> f32 {
    if (is_nan(x)) {
        return select(x, 0.0, op == 2u);
    }
    switch op {
        case 0u: { return -x; }
        case 1u: { return abs(x); }
        case 2u: { return sign(x); }
        case 3u: { return exponential(x); }
        case 4u: { return exponential_minus_one(x); }
        case 5u: { return logarithm(x); }
        case 6u: { return logarithm_of_one_plus(x); }
        case 7u: { return scaled_logarithm(x, 1.0, 0.0, 1.4426950409); }
        case 8u: { return scaled_logarithm(x, 0.301025390625, 4.605038981e-6, 0.4342944819); }
        case 9u: { return select(sqrt(x), not_a_number(), x < 0.0); }
        case 10u: { return select(1.0 / sqrt(x), not_a_number(), x < 0.0); }
        case 11u: { return 1.0 / x; }
        case 12u: { return x * x; }
        case 13u: { return select(sine_and_cosine(x).x, not_a_number(), is_infinite(x)); }
        case 14u: { return select(sine_and_cosine(x).y, not_a_number(), is_infinite(x)); }
        case 15u: {
            let sc = sine_and_cosine(x);
            return select(sc.x / sc.y, not_a_number(), is_infinite(x));
        }
        case 16u: {
            let a = abs(x);
            let t = select(arctangent(min(a, 1.0)), 1.5707963268 - arctangent(1.0 / max(a, 1.0)), a > 1.0);
            return select(t, -t, x < 0.0);
        }
        case 17u: { return hyperbolic_tangent(x); }
        case 18u: { return sigmoid(x); }
        case 19u: { return log_sigmoid(x); }
        case 20u: { return error_function(x); }
        case 21u: { return max(x, 0.0); }
        case 22u: { return x * normal_cdf(x); }
        case 23u: { return x * sigmoid(2.0 * gelu_inner(x)); }
        case 24u: { return x * sigmoid(x); }
        case 25u: {
            if (p * x > q) {
                return x;
            }
            return logarithm_of_one_plus(exponential(p * x)) / p;
        }
        case 26u: { return select(p * x, x, x > 0.0); }
        case 27u: { return select(p * exponential_minus_one(x), x, x > 0.0); }
        // The upper limit wins where the limits cross.
        case 28u: { return min(max(x, p), q); }
        case 29u: { return floor(x); }
        case 30u: { return ceil(x); }
        case 31u: { return round(x); }
        default: { return trunc(x); }
    }
}
// end shared

// shared matmul epilogue
/// Bias and activation.
fn finished(sum: f32, batch: vec2<u32>, row: u32, column: u32) -> f32 {
    var result = sum;
    if (params.bias_strides.w != 0) {
        let steps = vec3<i32>(vec3<u32>(batch.y, row, column)) * params.bias_strides.xyz;
        result += load_elem(bias[u32(i32(params.bias_offset) + steps.x + steps.y + steps.z)]);
    }
    return activation(result);
}

/// Writes one element of the result.
fn write(sum: f32, part: u32, batch: vec2<u32>, row: u32, column: u32) {
    let steps = vec4<i32>(vec4<u32>(batch, row, column)) * params.y_strides;
    let at = u32(i32(params.y_offset) + steps.x + steps.y + steps.z + steps.w) + part * params.part_stride;
    y[at] = store_y_elem(finished(sum, batch, row, column));
}
// end shared

fn one_a(at: i32) -> f32 {
    return vec4<f32>(load_a_elem(a[u32(at)])).x;
}

fn one_b(at: i32) -> f32 {
    return vec4<f32>(load_b_elem(b[u32(at)])).x;
}

fn four_a(at: i32) -> vec4<f32> {
    return vec4<f32>(load_a_elem(a[u32(at) / 4u]));
}

fn four_b(at: i32) -> vec4<f32> {
    return vec4<f32>(load_b_elem(b[u32(at) / 4u]));
}

/// One position along k of four rows that begin at these places.
fn position_of_a(rows: vec4<i32>, k: i32) -> vec4<f32> {
    let at = rows + k * params.a_strides.w;
    if (A_VEC && !A_ALONG_K) {
        return four_a(at.x);
    }
    return vec4<f32>(one_a(at.x), one_a(at.y), one_a(at.z), one_a(at.w));
}

/// One position along k of four columns that begin at these places.
fn position_of_b(columns: vec4<i32>, k: i32) -> vec4<f32> {
    let at = columns + k * params.b_strides.w;
    return vec4<f32>(one_b(at.x), one_b(at.y), one_b(at.z), one_b(at.w));
}

/// Four positions of four rows: a column per position.
fn block_of_a(rows: vec4<i32>, k: i32) -> mat4x4<f32> {
    if (A_VEC && A_ALONG_K) {
        let at = rows + k;
        return transpose(mat4x4<f32>(four_a(at.x), four_a(at.y), four_a(at.z), four_a(at.w)));
    }
    return mat4x4<f32>(position_of_a(rows, k), position_of_a(rows, k + 1), position_of_a(rows, k + 2), position_of_a(rows, k + 3));
}

/// Four positions of four columns: a column per column.
fn block_of_b(columns: vec4<i32>, k: i32) -> mat4x4<f32> {
    if (B_VEC) {
        let at = columns + k;
        return mat4x4<f32>(four_b(at.x), four_b(at.y), four_b(at.z), four_b(at.w));
    }
    return transpose(mat4x4<f32>(position_of_b(columns, k), position_of_b(columns, k + 1), position_of_b(columns, k + 2), position_of_b(columns, k + 3)));
}

/// Four rows of one column: sum plus the products of four positions.
fn add_products(sum: vec4<f32>, a: mat4x4<f32>, b: vec4<f32>) -> vec4<f32> {
    return fma(a[3], vec4<f32>(b.w), fma(a[2], vec4<f32>(b.z), fma(a[1], vec4<f32>(b.y), fma(a[0], vec4<f32>(b.x), sum))));
}

fn add_blocks(sums: mat4x4<f32>, a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        add_products(sums[0], a, b[0]),
        add_products(sums[1], a, b[1]),
        add_products(sums[2], a, b[2]),
        add_products(sums[3], a, b[3]),
    );
}

fn add_position(sums: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(a, vec4<f32>(b.x), sums[0]),
        fma(a, vec4<f32>(b.y), sums[1]),
        fma(a, vec4<f32>(b.z), sums[2]),
        fma(a, vec4<f32>(b.w), sums[3]),
    );
}

/// Four rows one further on: `next` has the row after them.
fn moved_up(rows: mat4x4<f32>, next: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        vec4<f32>(rows[0].yzw, next[0].x),
        vec4<f32>(rows[1].yzw, next[1].x),
        vec4<f32>(rows[2].yzw, next[2].x),
        vec4<f32>(rows[3].yzw, next[3].x),
    );
}

/// Where four rows of a begin. Where there are fewer, others stand in: what comes of them is not written.
fn starts_of_rows(base: i32, row: u32) -> vec4<i32> {
    let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(params.m - 1u));
    return vec4<i32>(base) + vec4<i32>(rows) * params.a_strides.z;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = vec2<u32>(ROWS, 4u * LANES);
    let tiles = (vec2<u32>(params.m, params.n) + tile - 1u) / tile;
    var rest = group.x + groups.x * (group.y + groups.y * group.z);
    let per_batch = tiles.x * tiles.y;
    let number = rest / per_batch;
    rest -= number * per_batch;
    if (number >= params.batches * params.parts) {
        return;
    }
    let part = number / params.batches;
    let batch_number = number - part * params.batches;
    let batch = vec2<u32>(batch_number / params.inner, batch_number % params.inner);
    // Workgroups in a row share their columns of b, which stay in the cache.
    let tile_column = rest / tiles.x;
    let first_row = (rest - tile_column * tiles.x) * ROWS;
    // Neighbours have neighbouring columns, and each has four of them.
    let first_column = tile_column * tile.y + local;
    let columns = vec4<u32>(first_column) + vec4<u32>(0u, LANES, 2u * LANES, 3u * LANES);

    let in_batch = vec2<i32>(batch);
    let a_steps = in_batch * params.a_strides.xy;
    let b_steps = in_batch * params.b_strides.xy;
    let a_base = i32(params.a_offset) + a_steps.x + a_steps.y;
    let b_base = i32(params.b_offset) + b_steps.x + b_steps.y;
    let b_starts = vec4<i32>(b_base) + vec4<i32>(min(columns, vec4<u32>(params.n - 1u))) * params.b_strides.z;
    let starts0 = starts_of_rows(a_base, first_row);
    let starts1 = starts_of_rows(a_base, first_row + 4u);
    let starts2 = starts_of_rows(a_base, first_row + 8u);
    let starts3 = starts_of_rows(a_base, first_row + 12u);

    // Four rows each, a column per column of b.
    var sums0 = mat4x4<f32>();
    var sums1 = mat4x4<f32>();
    var sums2 = mat4x4<f32>();
    var sums3 = mat4x4<f32>();
    var k = i32(part * params.k_part);
    let end = min(k + i32(params.k_part), i32(params.k));
    for (; k + 4 <= end; k += 4) {
        let block = block_of_b(b_starts, k);
        sums0 = add_blocks(sums0, block_of_a(starts0, k), block);
        if (ROWS > 4u) {
            sums1 = add_blocks(sums1, block_of_a(starts1, k), block);
        }
        if (ROWS > 8u) {
            sums2 = add_blocks(sums2, block_of_a(starts2, k), block);
            sums3 = add_blocks(sums3, block_of_a(starts3, k), block);
        }
    }
    if (TAIL) {
        for (; k < end; k += 1) {
            let values = position_of_b(b_starts, k);
            sums0 = add_position(sums0, position_of_a(starts0, k), values);
            if (ROWS > 4u) {
                sums1 = add_position(sums1, position_of_a(starts1, k), values);
            }
            if (ROWS > 8u) {
                sums2 = add_position(sums2, position_of_a(starts2, k), values);
                sums3 = add_position(sums3, position_of_a(starts3, k), values);
            }
        }
    }

    // The row that is written is always the first one, and the others move up: to choose one by number, drivers make a tree of branches
    // for each number, which took them longer to compile than all the rest.
    let rows = min(ROWS, params.m - first_row);
    for (var i = 0u; i < rows; i += 1u) {
        let row = vec4<f32>(sums0[0].x, sums0[1].x, sums0[2].x, sums0[3].x);
        sums0 = moved_up(sums0, sums1);
        if (ROWS > 4u) {
            sums1 = moved_up(sums1, sums2);
        }
        if (ROWS > 8u) {
            sums2 = moved_up(sums2, sums3);
            sums3 = moved_up(sums3, sums3);
        }
        for (var j = 0u; j < 4u; j += 1u) {
            if (columns[j] < params.n) {
                write(row[j], part, batch, first_row + i, columns[j]);
            }
        }
    }
}
