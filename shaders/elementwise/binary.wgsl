// y = a OP b for floats; b is a scalar if SCALAR is 1, a if it is 2. OP: add, sub, mul, div, pow, remainder, maximum, minimum, atan2.
//
// Bindings: 0: a, 1: b, 2: y. ITEMS elements per invocation. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const OP: u32 = 0u;
const SCALAR: u32 = 0u;
const STRIDED: bool = true;
// end variant

override WORKGROUP: u32 = 256u;
/// Elements per invocation.
override ITEMS: u32 = 1u;

struct Params {
    shape: vec4<u32>,
    y_strides: vec4<i32>,
    a_strides: vec4<i32>,
    b_strides: vec4<i32>,
    n: u32,
    y_offset: u32,
    a_offset: u32,
    b_offset: u32,
    scalar: u32,
}

@group(0) @binding(0) var<storage, read> a: array<elem>;
@group(0) @binding(1) var<storage, read> b: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
var<immediate> params: Params;

// shared coordinates
/// The coordinates of element i in row-major order.
fn coordinates(i: u32, shape: vec4<u32>) -> vec4<i32> {
    let r3 = i / shape.w;
    let r2 = r3 / shape.z;
    let r1 = r2 / shape.y;
    return vec4<i32>(vec4<u32>(r1, r2 - r1 * shape.y, r3 - r2 * shape.z, i - r3 * shape.w));
}

/// Where the element at these coordinates lies.
fn position(at: vec4<i32>, strides: vec4<i32>, offset: u32) -> u32 {
    let steps = at * strides;
    return u32(i32(offset) + steps.x + steps.y + steps.z + steps.w);
}
// end shared

// shared advance
/// The coordinates `step` elements further on; step is the coordinates of that element.
fn advanced(at: vec4<i32>, step: vec4<i32>, shape: vec4<i32>) -> vec4<i32> {
    var next = at + step;
    let over_w = next.w >= shape.w;
    next -= select(vec4<i32>(), vec4<i32>(0, 0, -1, shape.w), over_w);
    let over_z = next.z >= shape.z;
    next -= select(vec4<i32>(), vec4<i32>(0, -1, shape.z, 0), over_z);
    let over_y = next.y >= shape.y;
    return next - select(vec4<i32>(), vec4<i32>(-1, shape.y, 0, 0), over_y);
}
// end shared

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

// shared binary
/// a to the power of b.
fn power(a: f32, b: f32) -> f32 {
    if (b == 0.0 || a == 1.0) {
        return 1.0;
    }
    if (is_nan(a) || is_nan(b)) {
        return a + b;
    }
    if (b == 1.0) {
        return a;
    }
    if (b == 2.0) {
        return a * a;
    }
    if (b == 0.5 && a >= 0.0) {
        return sqrt(a);
    }
    let size = abs(a);
    let whole = floor(b) == b;
    // Floats from 2^24 on are even.
    let odd = whole && abs(b) < 16777216.0 && (i32(b) & 1) != 0;
    var result = 1.0;
    if (size == 0.0) {
        result = select(0.0, infinity(), b < 0.0);
    } else if (is_infinite(size)) {
        result = select(infinity(), 0.0, b < 0.0);
    } else if (is_infinite(b)) {
        if (size != 1.0) {
            result = select(0.0, infinity(), (size > 1.0) == (b > 0.0));
        }
        return result;
    } else if (whole && abs(b) <= 64.0) {
        // By squaring: exact where the result is.
        var square = size;
        var left = u32(abs(b));
        while (left != 0u) {
            if ((left & 1u) != 0u) {
                result *= square;
            }
            square *= square;
            left >>= 1u;
        }
        if (b < 0.0) {
            result = 1.0 / result;
        }
    } else {
        result = exp2_product(b, size);
    }
    if (a < 0.0 && !whole && !is_infinite(size)) {
        return not_a_number();
    }
    return select(result, -result, odd && (bitcast<u32>(a) >> 31u) == 1u);
}

/// The upper half of a number's bits. Products of two halves are exact, so that nothing depends on whether a multiplication and an
/// addition are fused; and compilers that take (x + 1) - 1 for x do not see through it.
fn upper(a: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
}

/// 2 to the power of b log2(a), the logarithm in two parts: rounding it to f32 would cost the result several digits.
fn exp2_product(b: f32, a: f32) -> f32 {
    let split = parts(a);
    let m = split.x;
    let e = split.y;
    // log2(m) = 2 / ln 2 * atanh(s), s = (m - 1) / (m + 1)
    let numerator = m - 1.0;
    let d_high = upper(m + 1.0);
    let d_low = m - (d_high - 1.0);
    let d = d_high + d_low;
    let s = numerator / d;
    let s_high = upper(s);
    let s_low = s - s_high;
    // What the division has lost.
    let s_error = ((((numerator - s_high * d_high) - s_high * d_low) - s_low * d_high) - s_low * d_low) / d;
    let s2 = s * s;
    let tail = s * s2 * (0.9617966939 + s2 * (0.5770780164 + s2 * (0.4121985831 + s2 * (0.3205988980 + s2 * 0.2623081893))));
    // 2 / ln 2 is 2.884765625 + 6.2445678e-4, the first with 12 bits.
    let high = s_high * 2.884765625;
    let low = s_high * 6.2445678e-4 + (s_low + s_error) * 2.8853900818 + tail;
    let product = b * (e + (high + low));
    if (product > 130.0) {
        return infinity();
    }
    if (product < -160.0) {
        return 0.0;
    }
    let whole = round(product);
    let log_high = upper(e + high);
    let log_low = ((e - log_high) + high) + low;
    let b_high = upper(b);
    let fraction = (b_high * log_high - whole) + ((b - b_high) * log_high + b * log_low);
    // Two factors, so that neither leaves the range of f32 before the product does.
    let half = floor(whole * 0.5);
    return exp2_of_part(fraction) * power_of_two(half) * power_of_two(whole - half);
}

/// 2 to the power of x for |x| of little more than a half: the built-in function may be off by several units.
fn exp2_of_part(x: f32) -> f32 {
    let r = x * 0.6931471806;
    return 1.0 + (r + r * r * (0.5 + r * (0.16666667 + r * (0.041666668 + r * (0.0083333333 + r * (0.0013888889 + r * 1.984127e-4))))));
}

fn power_of_two(e: f32) -> f32 {
    return bitcast<f32>(u32(clamp(i32(e) + 127, 1, 254)) << 23u);
}

/// a - floor(a / b) * b: the sign of the divisor.
fn remainder(a: f32, b: f32) -> f32 {
    // What is smaller than normal numbers may be zero on the device, whatever a comparison says.
    if (is_nan(a) || is_nan(b) || abs(b) < 1.17549435e-38 || is_infinite(a)) {
        return not_a_number();
    }
    if (is_infinite(b)) {
        return select(a, b, a != 0.0 && (a < 0.0) != (b < 0.0));
    }
    var r = fmod(abs(a), abs(b));
    if (a < 0.0) {
        r = -r;
    }
    return select(r, r + b, r != 0.0 && (r < 0.0) != (b < 0.0));
}

/// a modulo b for a >= 0 and b > 0, exact: takes away the largest b 2^k first.
fn fmod(a: f32, b: f32) -> f32 {
    var r = a;
    while (r >= b) {
        if (r - b < b) {
            return r - b;
        }
        let q = r / b;
        if (q < 2048.0) {
            // All products are exact, and so are the differences. The quotient may be off by one.
            let n = floor(q);
            r = (r - n * upper(b)) - n * (b - upper(b));
            if (r < 0.0) {
                r += b;
            } else if (r >= b) {
                r -= b;
            }
            return r;
        }
        // b 2^k with r / 2 < b 2^k <= r is exact, and so is the difference. With the exponents' difference as k it could be too large.
        let k = parts(r).y - parts(b).y - 1.0;
        let half = floor(k * 0.5);
        var step = b * power_of_two(half) * power_of_two(k - half);
        if (step <= r * 0.5) {
            step += step;
        }
        r -= step;
    }
    return r;
}

/// The angle of the point (b, a).
fn angle(a: f32, b: f32) -> f32 {
    if (is_nan(a) || is_nan(b)) {
        return not_a_number();
    }
    let y = abs(a);
    let x = abs(b);
    let low = min(x, y);
    let high = max(x, y);
    var t = 0.0;
    if (is_infinite(high)) {
        t = select(0.0, 1.0, is_infinite(low));
    } else if (high != 0.0) {
        t = low / high;
    }
    var r = arctangent(t);
    if (y > x) {
        r = 1.5707963268 - r;
    }
    if ((bitcast<u32>(b) >> 31u) == 1u) {
        r = 3.1415926536 - r;
    }
    return select(r, -r, (bitcast<u32>(a) >> 31u) == 1u);
}

/// The operation with number `op`.
fn apply(op: u32, a: f32, b: f32) -> f32 {
    switch op {
        case 0u: { return a + b; }
        case 1u: { return a - b; }
        case 2u: { return a * b; }
        case 3u: { return a / b; }
        case 4u: { return power(a, b); }
        case 5u: { return remainder(a, b); }
        case 6u: { return select(max(a, b), a + b, is_nan(a) || is_nan(b)); }
        case 7u: { return select(min(a, b), a + b, is_nan(a) || is_nan(b)); }
        default: { return angle(a, b); }
    }
}
// end shared

/// Of the elements of a and b, and the bits of the scalar.
fn element(a: elem, b: elem, scalar: u32) -> elem {
    var left = load_elem(a);
    var right = bitcast<f32>(scalar);
    if (SCALAR == 0u) {
        right = load_elem(b);
    } else if (SCALAR == 2u) {
        right = left;
        left = bitcast<f32>(scalar);
    }
    return store_elem(apply(OP, left, right));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP * ITEMS;
    let end = min(params.n, first + WORKGROUP * ITEMS);
    var at = vec4<i32>();
    var step = vec4<i32>();
    if (STRIDED) {
        at = coordinates(first + local, params.shape);
        step = coordinates(WORKGROUP, params.shape);
    }
    for (var i = first + local; i < end; i += WORKGROUP) {
        var y_at = params.y_offset + i;
        var a_at = params.a_offset + i;
        var b_at = params.b_offset + i;
        if (STRIDED) {
            y_at = position(at, params.y_strides, params.y_offset);
            a_at = position(at, params.a_strides, params.a_offset);
            b_at = position(at, params.b_strides, params.b_offset);
            at = advanced(at, step, vec4<i32>(params.shape));
        }
        y[y_at] = element(a[a_at], b[b_at], params.scalar);
    }
}
