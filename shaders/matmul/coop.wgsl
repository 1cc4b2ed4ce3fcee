// y = activation(a b + bias) for batches of matrices with any strides, on the cooperative matrices of a subgroup.
//
// Bindings: 0: a, 1: b, 2: bias (a again if there is none), 3: y. One workgroup of eight subgroups (two by four) computes one
// tile of y, or one part of its sum over k: BLOCK_ROWS x BLOCK_COLUMNS matrices of SIDE x SIDE per subgroup. It walks along k in
// steps of DEPTH; of every step each invocation copies up to four times four elements of a and of b as they are (the next ones while
// its subgroup multiplies these). Products are of `value`s, sums are f32.
// Workgroup memory: a tile of a and one of b, TILE_ROWS x DEPTH and TILE_COLUMNS x DEPTH values with 8 more per line, and a f32
// matrix per subgroup: 27.5 KiB for f16 matrices of 16 x 16 if BIG, else 17.5 KiB; 8 KiB for those of 8 x 8 (10 KiB in f32), else 5.
enable wgpu_cooperative_matrix;

// variant
alias a_elem = f32;
alias b_elem = f32;
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
alias y_elem = f32;
fn store_y_elem(x: f32) -> y_elem { return x; }
fn activation(x: f32) -> f32 { return x; }
alias value = f32;
alias left = coop_mat8x8<f32, A>;
alias right = coop_mat8x8<f32, B>;
alias sums = coop_mat8x8<f32, C>;
const SIDE: u32 = 8u;
const A_VEC: bool = false;
const A_ALONG_K: bool = true;
const B_VEC: bool = false;
const B_ALONG_K: bool = false;
const BIG: bool = false;
const WORKGROUP: u32 = 64u;
// end variant

const SUBGROUPS: u32 = 8u;
/// Matrices of one subgroup.
const BLOCK_ROWS: u32 = select(2u, 4u, BIG);
const BLOCK_COLUMNS: u32 = select(1u, 2u, BIG);
const TILE_ROWS: u32 = 2u * BLOCK_ROWS * SIDE;
const TILE_COLUMNS: u32 = 4u * BLOCK_COLUMNS * SIDE;
const DEPTH: u32 = 2u * SIDE;
/// Lines of the tiles lie as they do in memory, along k or across; they are longer than they need be, to meet different banks.
const A_PITCH: u32 = select(TILE_ROWS, DEPTH, A_ALONG_K) + 8u;
const A_LINES: u32 = select(DEPTH, TILE_ROWS, A_ALONG_K);
const B_PITCH: u32 = select(TILE_COLUMNS, DEPTH, B_ALONG_K) + 8u;
const B_LINES: u32 = select(DEPTH, TILE_COLUMNS, B_ALONG_K);
/// Fours of a tile, and how many of them an invocation copies.
const A_FOURS: u32 = TILE_ROWS * DEPTH / 4u;
const B_FOURS: u32 = TILE_COLUMNS * DEPTH / 4u;
const A_COPIES: u32 = (A_FOURS + WORKGROUP - 1u) / WORKGROUP;
const B_COPIES: u32 = (B_FOURS + WORKGROUP - 1u) / WORKGROUP;
/// Rows of tiles that are computed side by side, so that what they load is still in the cache.
const BAND: u32 = 8u;

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

var<workgroup> tile_a: array<value, A_LINES * A_PITCH>;
var<workgroup> tile_b: array<value, B_LINES * B_PITCH>;
var<workgroup> staged: array<f32, SUBGROUPS * SIDE * SIDE>;

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

/// Row and position (along k) in the tile of a of the four elements with this number.
fn place_a(number: u32) -> vec2<u32> {
    if (A_ALONG_K) {
        return vec2<u32>(number / (DEPTH / 4u), number % (DEPTH / 4u) * 4u);
    }
    return vec2<u32>(number % (TILE_ROWS / 4u) * 4u, number / (TILE_ROWS / 4u));
}

/// Column and position in the tile of b of the four elements with this number.
fn place_b(number: u32) -> vec2<u32> {
    if (B_ALONG_K) {
        return vec2<u32>(number / (DEPTH / 4u), number % (DEPTH / 4u) * 4u);
    }
    return vec2<u32>(number % (TILE_COLUMNS / 4u) * 4u, number / (TILE_COLUMNS / 4u));
}

/// The four elements of a with this number in the tile from this row and k on; zeros past the last row and from `end` on.
fn fetch_a(base: i32, number: u32, first_row: u32, first_k: u32, end: u32) -> vec4<value> {
    let place = place_a(number);
    let i = first_row + place.x;
    let k = first_k + place.y;
    if (number >= A_FOURS || i >= params.m || k >= end) {
        return vec4<value>();
    }
    let at = base + i32(i) * params.a_strides.z + i32(k) * params.a_strides.w;
    if (A_VEC) {
        return vec4<value>(a[u32(at) / 4u]);
    }
    let step = select(params.a_strides.z, params.a_strides.w, A_ALONG_K);
    let left = select(params.m - i, end - k, A_ALONG_K);
    var four = vec4<value>(vec4<value>(a[u32(at)]).x, value(), value(), value());
    if (left > 1u) {
        four.y = vec4<value>(a[u32(at + step)]).x;
    }
    if (left > 2u) {
        four.z = vec4<value>(a[u32(at + 2 * step)]).x;
    }
    if (left > 3u) {
        four.w = vec4<value>(a[u32(at + 3 * step)]).x;
    }
    return four;
}

/// The four elements of b with this number in the tile from this column and k on; zeros past the last column and from `end` on.
fn fetch_b(base: i32, number: u32, first_column: u32, first_k: u32, end: u32) -> vec4<value> {
    let place = place_b(number);
    let i = first_column + place.x;
    let k = first_k + place.y;
    if (number >= B_FOURS || i >= params.n || k >= end) {
        return vec4<value>();
    }
    let at = base + i32(i) * params.b_strides.z + i32(k) * params.b_strides.w;
    if (B_VEC) {
        return vec4<value>(b[u32(at) / 4u]);
    }
    let step = select(params.b_strides.z, params.b_strides.w, B_ALONG_K);
    let left = select(params.n - i, end - k, B_ALONG_K);
    var four = vec4<value>(vec4<value>(b[u32(at)]).x, value(), value(), value());
    if (left > 1u) {
        four.y = vec4<value>(b[u32(at + step)]).x;
    }
    if (left > 2u) {
        four.z = vec4<value>(b[u32(at + 2 * step)]).x;
    }
    if (left > 3u) {
        four.w = vec4<value>(b[u32(at + 3 * step)]).x;
    }
    return four;
}

/// Writes down four elements of the tile of a.
fn put_a(number: u32, four: vec4<value>) {
    if (number >= A_FOURS) {
        return;
    }
    let place = place_a(number);
    let at = select(place.y * A_PITCH + place.x, place.x * A_PITCH + place.y, A_ALONG_K);
    tile_a[at] = four.x;
    tile_a[at + 1u] = four.y;
    tile_a[at + 2u] = four.z;
    tile_a[at + 3u] = four.w;
}

/// Writes down four elements of the tile of b.
fn put_b(number: u32, four: vec4<value>) {
    if (number >= B_FOURS) {
        return;
    }
    let place = place_b(number);
    let at = select(place.y * B_PITCH + place.x, place.x * B_PITCH + place.y, B_ALONG_K);
    tile_b[at] = four.x;
    tile_b[at + 1u] = four.y;
    tile_b[at + 2u] = four.z;
    tile_b[at + 3u] = four.w;
}

/// The matrix of a from this row and position of the tile on.
fn matrix_a(row: u32, k: u32) -> left {
    // The branches load in different orders; what is not taken is not compiled.
    if (A_ALONG_K) {
        return coopLoadT<left>(&tile_a[row * A_PITCH + k], A_PITCH);
    }
    return coopLoad<left>(&tile_a[k * A_PITCH + row], A_PITCH);
}

/// The matrix of b from this position and column of the tile on.
fn matrix_b(k: u32, column: u32) -> right {
    if (B_ALONG_K) {
        return coopLoad<right>(&tile_b[column * B_PITCH + k], B_PITCH);
    }
    return coopLoadT<right>(&tile_b[k * B_PITCH + column], B_PITCH);
}

/// Where a matrix of sums is, and who writes it.
struct Place {
    part: u32,
    batch: vec2<u32>,
    row: u32,
    column: u32,
    // Of the subgroup: its part of `staged`, the number of this invocation and how many there are.
    base: u32,
    lane: u32,
    lanes: u32,
    // Whether the subgroup is one of those that are needed.
    takes_part: bool,
}

/// Writes the matrix of sums that lies `row` and `column` from the place on: to workgroup memory and from there to y.
fn write_sums(c: sums, place: Place, row: u32, column: u32) {
    workgroupBarrier();
    // Subgroups that repeat the work of others write what those write.
    coopStoreT(c, &staged[place.base], SIDE);
    workgroupBarrier();
    if (!place.takes_part) {
        return;
    }
    for (var i = place.lane; i < SIDE * SIDE; i += place.lanes) {
        let at = vec2<u32>(place.row + row + i / SIDE, place.column + column + i % SIDE);
        if (at.x < params.m && at.y < params.n) {
            write(staged[place.base + i], place.part, place.batch, at.x, at.y);
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let tile = vec2<u32>(TILE_ROWS, TILE_COLUMNS);
    let tiles = (vec2<u32>(params.m, params.n) + tile - 1u) / tile;
    // Values, not variables, so that the validator sees that all invocations take the same way.
    let tile_number = group.x + groups.x * (group.y + groups.y * group.z);
    let per_batch = tiles.x * tiles.y;
    let number = tile_number / per_batch;
    if (number >= params.batches * params.parts) {
        return;
    }
    let part = number / params.batches;
    let batch_number = number - part * params.batches;
    let batch = vec2<u32>(batch_number / params.inner, batch_number % params.inner);
    let in_matrix = tile_number - number * per_batch;
    let band = in_matrix / (BAND * tiles.y);
    let in_band = in_matrix - band * BAND * tiles.y;
    let band_rows = min(BAND, tiles.x - band * BAND);
    let tile_column = in_band / band_rows;
    let first_row = (band * BAND + in_band - tile_column * band_rows) * TILE_ROWS;
    let first_column = tile_column * TILE_COLUMNS;

    let in_batch = vec2<i32>(batch);
    let a_steps = in_batch * params.a_strides.xy;
    let b_steps = in_batch * params.b_strides.xy;
    let a_base = i32(params.a_offset) + a_steps.x + a_steps.y;
    let b_base = i32(params.b_offset) + b_steps.x + b_steps.y;

    // Where subgroups are smaller than they can be, there are more than are needed: those repeat the work of others.
    let block = subgroup % SUBGROUPS;
    let row = block / 4u * BLOCK_ROWS * SIDE;
    let column = block % 4u * BLOCK_COLUMNS * SIDE;

    // There is no matrix of zeros but a loaded one.
    for (var i = local; i < SUBGROUPS * SIDE * SIDE; i += WORKGROUP) {
        staged[i] = 0.0;
    }
    workgroupBarrier();
    let base = block * SIDE * SIDE;
    let zeros = coopLoadT<sums>(&staged[base], SIDE);
    var c00 = zeros;
    var c10 = zeros;
    var c20 = zeros;
    var c30 = zeros;
    var c01 = zeros;
    var c11 = zeros;
    var c21 = zeros;
    var c31 = zeros;

    let begin = part * params.k_part;
    let end = min(begin + params.k_part, params.k);
    var a0 = fetch_a(a_base, local, first_row, begin, end);
    var a1 = vec4<value>();
    var a2 = vec4<value>();
    var a3 = vec4<value>();
    var b0 = fetch_b(b_base, local, first_column, begin, end);
    var b1 = vec4<value>();
    var b2 = vec4<value>();
    var b3 = vec4<value>();
    if (A_COPIES > 1u) {
        a1 = fetch_a(a_base, local + WORKGROUP, first_row, begin, end);
    }
    if (A_COPIES > 2u) {
        a2 = fetch_a(a_base, local + 2u * WORKGROUP, first_row, begin, end);
        a3 = fetch_a(a_base, local + 3u * WORKGROUP, first_row, begin, end);
    }
    if (B_COPIES > 1u) {
        b1 = fetch_b(b_base, local + WORKGROUP, first_column, begin, end);
    }
    if (B_COPIES > 2u) {
        b2 = fetch_b(b_base, local + 2u * WORKGROUP, first_column, begin, end);
        b3 = fetch_b(b_base, local + 3u * WORKGROUP, first_column, begin, end);
    }
    for (var k = begin; k < end; k += DEPTH) {
        put_a(local, a0);
        put_b(local, b0);
        if (A_COPIES > 1u) {
            put_a(local + WORKGROUP, a1);
        }
        if (A_COPIES > 2u) {
            put_a(local + 2u * WORKGROUP, a2);
            put_a(local + 3u * WORKGROUP, a3);
        }
        if (B_COPIES > 1u) {
            put_b(local + WORKGROUP, b1);
        }
        if (B_COPIES > 2u) {
            put_b(local + 2u * WORKGROUP, b2);
            put_b(local + 3u * WORKGROUP, b3);
        }
        workgroupBarrier();
        // Past the end this loads nothing.
        let next = k + DEPTH;
        a0 = fetch_a(a_base, local, first_row, next, end);
        b0 = fetch_b(b_base, local, first_column, next, end);
        if (A_COPIES > 1u) {
            a1 = fetch_a(a_base, local + WORKGROUP, first_row, next, end);
        }
        if (A_COPIES > 2u) {
            a2 = fetch_a(a_base, local + 2u * WORKGROUP, first_row, next, end);
            a3 = fetch_a(a_base, local + 3u * WORKGROUP, first_row, next, end);
        }
        if (B_COPIES > 1u) {
            b1 = fetch_b(b_base, local + WORKGROUP, first_column, next, end);
        }
        if (B_COPIES > 2u) {
            b2 = fetch_b(b_base, local + 2u * WORKGROUP, first_column, next, end);
            b3 = fetch_b(b_base, local + 3u * WORKGROUP, first_column, next, end);
        }
        for (var d = 0u; d < DEPTH; d += SIDE) {
            let l0 = matrix_a(row, d);
            let l1 = matrix_a(row + SIDE, d);
            let r0 = matrix_b(d, column);
            c00 = coopMultiplyAdd(l0, r0, c00);
            c10 = coopMultiplyAdd(l1, r0, c10);
            if (BIG) {
                let l2 = matrix_a(row + 2u * SIDE, d);
                let l3 = matrix_a(row + 3u * SIDE, d);
                let r1 = matrix_b(d, column + SIDE);
                c20 = coopMultiplyAdd(l2, r0, c20);
                c30 = coopMultiplyAdd(l3, r0, c30);
                c01 = coopMultiplyAdd(l0, r1, c01);
                c11 = coopMultiplyAdd(l1, r1, c11);
                c21 = coopMultiplyAdd(l2, r1, c21);
                c31 = coopMultiplyAdd(l3, r1, c31);
            }
        }
        workgroupBarrier();
    }

    let place = Place(part, batch, first_row + row, first_column + column, base, lane, lanes, subgroup < SUBGROUPS);
    write_sums(c00, place, 0u, 0u);
    write_sums(c10, place, SIDE, 0u);
    if (BIG) {
        write_sums(c20, place, 2u * SIDE, 0u);
        write_sums(c30, place, 3u * SIDE, 0u);
        write_sums(c01, place, 0u, SIDE);
        write_sums(c11, place, SIDE, SIDE);
        write_sums(c21, place, 2u * SIDE, SIDE);
        write_sums(c31, place, 3u * SIDE, SIDE);
    }
}
