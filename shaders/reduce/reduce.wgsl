// y = sum, mean, product, largest, smallest, any or all (KIND 0 to 6) of x over some dimensions. NaN wins in 3 and 4.
//
// Bindings: 0: x, 1: y. A workgroup computes WORKGROUP / LANES outputs with LANES invocations each, of one of `splits` parts of
// the reduced elements; with several splits, y has a partial result per output and split, and a second launch combines them.
// Neighbouring invocations take neighbouring reduced elements, or if COLUMNS neighbouring outputs: what lies side by side.
// Sums grow in blocks of 32 elements per invocation, then over blocks, then as a tree. Workgroup memory: 4 bytes per invocation.

// variant
alias src = f32;
fn load_src(x: src) -> f32 { return x; }
alias num = f32;
alias acc = f32;
alias dst = f32;
fn store_dst(x: f32) -> dst { return x; }
const KIND: u32 = 0u;
const IS_FLOAT: bool = true;
const COLUMNS: bool = false;
const FLAT: bool = true;
const SUBGROUP: u32 = 1u;
fn shuffled(x: acc, step: u32) -> acc { return x; }
// end variant

override WORKGROUP: u32 = 256u;
override LANES: u32 = 64u;

struct Params {
    shape: vec4<u32>,
    strides: vec4<i32>,
    inner_shape: vec4<u32>,
    inner_strides: vec4<i32>,
    outputs: u32,
    n: u32,
    splits: u32,
    chunk: u32,
    offset: u32,
    neutral: u32,
    divisor: f32,
}

@group(0) @binding(0) var<storage, read> x: array<src>;
@group(0) @binding(1) var<storage, read_write> y: array<dst>;
var<immediate> params: Params;

var<workgroup> partial: array<acc, WORKGROUP>;

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

fn is_nan_acc(x: acc) -> bool {
    return IS_FLOAT && (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn combine(a: acc, b: acc) -> acc {
    switch KIND {
        case 0u, 1u: { return a + b; }
        case 2u: { return a * b; }
        case 3u: { return select(max(a, b), a + b, is_nan_acc(a) || is_nan_acc(b)); }
        case 4u: { return select(min(a, b), a + b, is_nan_acc(a) || is_nan_acc(b)); }
        case 5u: { return max(a, b); }
        default: { return min(a, b); }
    }
}

/// Reduced element i of the output whose elements begin at base.
fn item(base: u32, i: u32) -> acc {
    var at = base;
    if (FLAT) {
        at = u32(i32(base) + i32(i) * params.inner_strides.w);
    } else {
        at = position(coordinates(i, params.inner_shape), params.inner_strides, base);
    }
    let value: num = load_src(x[at]);
    if (KIND >= 5u) {
        let size = bitcast<u32>(value) & select(0xffffffffu, 0x7fffffffu, IS_FLOAT);
        return acc(select(0, 1, size != 0u));
    }
    return acc(value);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let block = number / params.splits;
    let split = number - block * params.splits;
    let outs = WORKGROUP / LANES;
    var slot = local / LANES;
    var lane = local - slot * LANES;
    if (COLUMNS) {
        lane = local / outs;
        slot = local - lane * outs;
    }
    let output = block * outs + slot;
    let neutral = bitcast<acc>(params.neutral);
    var total = neutral;
    if (output < params.outputs) {
        let base = position(coordinates(output, params.shape), params.strides, params.offset);
        var i = split * params.chunk + lane;
        let end = min(split * params.chunk + params.chunk, params.n);
        while (i < end) {
            let stop = min(end, i + 32u * LANES);
            var a = neutral;
            var b = neutral;
            var c = neutral;
            var d = neutral;
            while (i + 3u * LANES < stop) {
                a = combine(a, item(base, i));
                b = combine(b, item(base, i + LANES));
                c = combine(c, item(base, i + 2u * LANES));
                d = combine(d, item(base, i + 3u * LANES));
                i += 4u * LANES;
            }
            while (i < stop) {
                a = combine(a, item(base, i));
                i += LANES;
            }
            total = combine(total, combine(combine(a, b), combine(c, d)));
        }
    }
    // Neighbours first, then pairs of neighbours, and so on, whoever makes which part of it.
    var step = 1u;
    if (!COLUMNS) {
        for (; step < min(SUBGROUP, LANES); step <<= 1u) {
            total = combine(total, shuffled(total, step));
        }
    }
    if (step < LANES) {
        let own = lane * outs + slot;
        partial[own] = total;
        workgroupBarrier();
        for (; step < LANES; step <<= 1u) {
            if (lane % (2u * step) == 0u) {
                partial[own] = combine(partial[own], partial[own + step * outs]);
            }
            workgroupBarrier();
        }
        total = partial[own];
    }
    if (lane == 0u && output < params.outputs) {
        var result = total;
        if (KIND == 1u) {
            result = acc(f32(result) / params.divisor);
        }
        y[output * params.splits + split] = store_dst(result);
    }
}
