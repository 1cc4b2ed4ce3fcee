// y = x of the same element type, moved as bits.
//
// Bindings: 0: x, 1: y. ITEMS elements per invocation. No workgroup memory.

// variant
alias elem = u32;
const STRIDED: bool = true;
// end variant

override WORKGROUP: u32 = 256u;
/// Elements per invocation.
override ITEMS: u32 = 1u;

struct Params {
    shape: vec4<u32>,
    y_strides: vec4<i32>,
    x_strides: vec4<i32>,
    n: u32,
    y_offset: u32,
    x_offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
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

fn element(x: elem) -> elem {
    return x;
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
        var x_at = params.x_offset + i;
        if (STRIDED) {
            y_at = position(at, params.y_strides, params.y_offset);
            x_at = position(at, params.x_strides, params.x_offset);
            at = advanced(at, step, vec4<i32>(params.shape));
        }
        y[y_at] = element(x[x_at]);
    }
}
