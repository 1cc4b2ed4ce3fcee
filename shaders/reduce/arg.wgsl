// y = position of the largest (SMALLEST: smallest) element of x along one dimension: the first of equals; NaN wins.
//
// Bindings: 0: x, 1: candidates, 2: y. Workgroups, LANES, COLUMNS and splits as in reduce.wgsl; with SECOND the elements are the
// candidates of the first launch, positions per output and split. Workgroup memory: 8 bytes per invocation.

// variant
alias src = f32;
fn load_src(x: src) -> f32 { return x; }
alias num = f32;
const IS_FLOAT: bool = true;
const SMALLEST: bool = false;
const COLUMNS: bool = false;
const SECOND: bool = false;
// end variant

override WORKGROUP: u32 = 256u;
override LANES: u32 = 64u;

struct Params {
    shape: vec4<u32>,
    strides: vec4<i32>,
    outputs: u32,
    n: u32,
    splits: u32,
    chunk: u32,
    offset: u32,
    step: i32,
}

@group(0) @binding(0) var<storage, read> x: array<src>;
@group(0) @binding(1) var<storage, read> candidates: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
var<immediate> params: Params;

var<workgroup> keys: array<u32, WORKGROUP>;
var<workgroup> places: array<u32, WORKGROUP>;

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

// shared order_key
/// Orders values as unsigned integers: NaN above everything, both zeros equal.
fn order_key(x: num) -> u32 {
    let bits = bitcast<u32>(x);
    if (!IS_FLOAT) {
        return bits ^ 0x80000000u;
    }
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0xffffffffu;
    }
    if ((bits >> 31u) == 0u || bits == 0x80000000u) {
        return bits | 0x80000000u;
    }
    return ~bits;
}
// end shared

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
    var best = 0u;
    var place = 0xffffffffu;
    if (output < params.outputs) {
        let base = position(coordinates(output, params.shape), params.strides, params.offset);
        let end = min(split * params.chunk + params.chunk, params.n);
        for (var i = split * params.chunk + lane; i < end; i += LANES) {
            var at = i;
            if (SECOND) {
                at = candidates[output * params.n + i];
            }
            var key = order_key(load_src(x[u32(i32(base) + i32(at) * params.step)]));
            if (SMALLEST && !(IS_FLOAT && key == 0xffffffffu)) {
                key = ~key;
            }
            // Positions ascend here: an equal one is not the first.
            if (key > best || place == 0xffffffffu) {
                best = key;
                place = at;
            }
        }
    }
    let own = lane * outs + slot;
    keys[own] = best;
    places[own] = place;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            let key = keys[own + half * outs];
            let at = places[own + half * outs];
            if (key > keys[own] || (key == keys[own] && at < places[own])) {
                keys[own] = key;
                places[own] = at;
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u && output < params.outputs) {
        y[output * params.splits + split] = places[own];
    }
}
