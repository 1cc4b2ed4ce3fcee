// y = activation(a b + bias) where b has one column, for batches with any strides. (One row times a matrix is the same transposed.)
//
// Bindings: 0: a, 1: b, 2: bias (a again if there is none), 3: y. One workgroup computes WORKGROUP / LANES_K elements; LANES_K
// invocations share the sum over k of each. Neighbouring invocations are neighbours along k if A_ALONG_K, else along the rows.
// With VEC they take four positions of k at once. Workgroup memory: one f32 per invocation.

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
const VEC: bool = false;
const A_ALONG_K: bool = true;
const LANES_K: u32 = 64u;
const WORKGROUP: u32 = 256u;
const SUBGROUP: u32 = 1u;
fn shuffled(x: f32, step: u32) -> f32 { return x; }
// end variant

const LANES_ROW: u32 = WORKGROUP / LANES_K;

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

var<workgroup> shares: array<f32, WORKGROUP>;

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

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let per_batch = (params.m + LANES_ROW - 1u) / LANES_ROW;
    let place = group.x + groups.x * (group.y + groups.y * group.z);
    let number = place / per_batch;
    if (number >= params.batches * params.parts) {
        return;
    }
    let part = number / params.batches;
    let batch_number = number - part * params.batches;
    let batch = vec2<u32>(batch_number / params.inner, batch_number % params.inner);
    let lane_row = select(local % LANES_ROW, local / LANES_K, A_ALONG_K);
    let lane_k = select(local / LANES_ROW, local % LANES_K, A_ALONG_K);
    let row = (place - number * per_batch) * LANES_ROW + lane_row;

    let in_batch = vec2<i32>(batch);
    let a_steps = in_batch * params.a_strides.xy;
    let b_steps = in_batch * params.b_strides.xy;
    // Where there is no such row, the last one stands in.
    let a_base = i32(params.a_offset) + a_steps.x + a_steps.y + i32(min(row, params.m - 1u)) * params.a_strides.z;
    let b_base = i32(params.b_offset) + b_steps.x + b_steps.y;

    let begin = part * params.k_part;
    let end = min(begin + params.k_part, params.k);
    var sum = 0.0;
    if (VEC) {
        var four = vec4<f32>();
        for (var k = begin + 4u * lane_k; k < end; k += 4u * LANES_K) {
            let from_a = vec4<f32>(load_a_elem(a[(u32(a_base) + k) / 4u]));
            four = fma(from_a, vec4<f32>(load_b_elem(b[(u32(b_base) + k) / 4u])), four);
        }
        sum = (four.x + four.y) + (four.z + four.w);
    } else {
        for (var k = begin + lane_k; k < end; k += LANES_K) {
            let from_a = vec4<f32>(load_a_elem(a[u32(a_base + i32(k) * params.a_strides.w)])).x;
            sum = fma(from_a, vec4<f32>(load_b_elem(b[u32(b_base + i32(k) * params.b_strides.w)])).x, sum);
        }
    }
    if (LANES_K > 1u) {
        // Neighbours first, then pairs of neighbours, and so on, whoever makes which part of it.
        var step = 1u;
        if (A_ALONG_K) {
            for (; step < min(SUBGROUP, LANES_K); step <<= 1u) {
                sum += shuffled(sum, step);
            }
        }
        if (step < LANES_K) {
            let at = lane_row * LANES_K + lane_k;
            shares[at] = sum;
            workgroupBarrier();
            for (; step < LANES_K; step <<= 1u) {
                if (lane_k % (2u * step) == 0u) {
                    shares[at] += shares[at + step];
                }
                workgroupBarrier();
            }
            sum = shares[at];
        }
    }
    if (lane_k == 0u && row < params.m) {
        write(sum, part, batch, row, 0u);
    }
}
