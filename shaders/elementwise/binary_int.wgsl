// y = a OP b for integers and bool; b is a scalar if SCALAR is 1, a if it is 2. OP as in binary.wgsl, without atan2;
// div rounds down.
//
// Bindings: 0: a, 1: b, 2: y, 3: fault. ITEMS elements per invocation. With CHECK a result that needs more than 32 bits is reported,
// a division by zero always. No workgroup memory.

// variant
alias elem = i32;
fn load_elem(x: elem) -> i32 { return x; }
fn store_elem(x: i32) -> elem { return x; }
const OP: u32 = 0u;
const SCALAR: u32 = 0u;
const CHECK: bool = true;
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
    code: u32,
}

// shared fault
struct Fault {
    state: atomic<u32>,
    op: u32,
    index: i32,
    size: u32,
}
// end shared

@group(0) @binding(0) var<storage, read> a: array<elem>;
@group(0) @binding(1) var<storage, read> b: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
@group(0) @binding(3) var<storage, read_write> fault: Fault;
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

// shared report_overflow
/// Whether a result computed in 32 bits is not the one that was meant, of which this is an estimate in f32: wrapping around moves it
/// by 2^32, rounding by far less.
fn exceeds(result: f32, estimate: f32) -> bool {
    return abs(result - estimate) > 1073741824.0;
}

/// Notes a result that needs more than 32 bits, unless a fault is noted already.
fn report_overflow() {
    if (atomicOr(&fault.state, 1u) == 0u) {
        fault.op = params.code | 0x40000000u;
    }
}
// end shared

/// A result, wrapped around where it does not fit, and an estimate of what it should be.
struct Outcome {
    value: i32,
    estimate: f32,
}

/// A result that always fits.
fn exact(value: i32) -> Outcome {
    return Outcome(value, f32(value));
}

/// a to the power of b.
fn power(a: i32, b: i32) -> Outcome {
    if (b < 0) {
        // Of the reciprocals, only those of 1 and -1 are whole.
        return exact(select(select(0, select(-1, 1, (b & 1) == 0), a == -1), 1, a == 1));
    }
    var result = Outcome(1, 1.0);
    var square = Outcome(a, f32(a));
    var left = b;
    while (left != 0) {
        if ((left & 1) != 0) {
            result = Outcome(result.value * square.value, result.estimate * square.estimate);
        }
        square = Outcome(square.value * square.value, square.estimate * square.estimate);
        left >>= 1u;
    }
    return result;
}

/// Is there nothing to divide by? Then this is reported.
fn undefined(b: i32) -> bool {
    if (b == 0 && atomicOr(&fault.state, 1u) == 0u) {
        fault.op = params.code | 0x80000000u;
    }
    return b == 0;
}

/// The sign of the divisor.
fn remainder(a: i32, b: i32) -> i32 {
    if (undefined(b) || b == -1) {
        return 0;
    }
    let r = a % b;
    return select(r, r + b, r != 0 && (r < 0) != (b < 0));
}

/// Rounded down.
fn floor_divide(a: i32, b: i32) -> Outcome {
    if (undefined(b)) {
        return exact(0);
    }
    if (b == -1) {
        return Outcome(-a, -f32(a)); // the smallest number has no negative
    }
    let r = a % b;
    return exact(a / b - select(0, 1, r != 0 && (r < 0) != (b < 0)));
}

fn apply(a: i32, b: i32) -> Outcome {
    switch OP {
        case 0u: { return Outcome(a + b, f32(a) + f32(b)); }
        case 1u: { return Outcome(a - b, f32(a) - f32(b)); }
        case 2u: { return Outcome(a * b, f32(a) * f32(b)); }
        case 3u: { return floor_divide(a, b); }
        case 4u: { return power(a, b); }
        case 5u: { return exact(remainder(a, b)); }
        case 6u: { return exact(max(a, b)); }
        default: { return exact(min(a, b)); }
    }
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
        var left = load_elem(a[a_at]);
        var right = bitcast<i32>(params.scalar);
        if (SCALAR == 0u) {
            right = load_elem(b[b_at]);
        } else if (SCALAR == 2u) {
            right = left;
            left = bitcast<i32>(params.scalar);
        }
        let result = apply(left, right);
        if (CHECK && exceeds(f32(result.value), result.estimate)) {
            report_overflow();
        }
        y[y_at] = store_elem(result.value);
    }
}
