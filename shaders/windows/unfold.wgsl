// y [n, c kh kw, oh ow] = the patches of x [n, c, h, w] that windows cover, zero where they are padding, moved as bits.
//
// Bindings: 0: x, 1: y, row-major. One invocation per element of y. No workgroup memory.

// variant
alias elem = u32;
// end variant

override WORKGROUP: u32 = 256u;

// shared window parameters
struct Params {
    // Of the dimensions of x.
    x_strides: vec4<i32>,
    // Height and width of the input plane, and of the plane of windows.
    input: vec2<u32>,
    output: vec2<u32>,
    kernel: vec2<u32>,
    stride: vec2<u32>,
    padding: vec2<u32>,
    dilation: vec2<u32>,
    // Elements of y.
    n: u32,
    channels: u32,
    x_offset: u32,
}
// end shared

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
var<immediate> params: Params;

// shared window position
/// Where the element of x at these coordinates lies.
fn position(at: vec4<u32>) -> u32 {
    let steps = vec4<i32>(at) * params.x_strides;
    return u32(i32(params.x_offset) + steps.x + steps.y + steps.z + steps.w);
}
// end shared

// shared window tap
/// Where a point of a window lies in the input plane. Left of it and above, the numbers wrap and are larger than any plane.
fn tap(window: vec2<u32>, point: vec2<u32>) -> vec2<u32> {
    return window * params.stride + point * params.dilation - params.padding;
}

fn is_inside(at: vec2<u32>) -> bool {
    return at.x < params.input.x && at.y < params.input.y;
}
// end shared

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (i >= params.n) {
        return;
    }
    let windows = params.output.x * params.output.y;
    let points = params.kernel.x * params.kernel.y;
    let patch_row = i / windows;
    let window_number = i - patch_row * windows;
    let window_row = window_number / params.output.y;
    let window = vec2<u32>(window_row, window_number - window_row * params.output.y);
    let plane = patch_row / points;
    let point_number = patch_row - plane * points;
    let point_row = point_number / params.kernel.y;
    let point = vec2<u32>(point_row, point_number - point_row * params.kernel.y);
    let image = plane / params.channels;
    let at = tap(window, point);
    var value = elem();
    if (is_inside(at)) {
        value = x[position(vec4<u32>(image, plane - image * params.channels, at))];
    }
    y[i] = value;
}
