// y [n, c, oh, ow] = the mean of x [n, c, h, w] in every window; padding counts as zeros if COUNT_PADDING.
//
// Bindings: 0: x, 1: y, row-major. One invocation per window. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const COUNT_PADDING: bool = true;
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
    // Plane, row and column of the window.
    let row = i / params.output.y;
    let plane = row / params.output.x;
    let window = vec2<u32>(row - plane * params.output.x, i - row * params.output.y);
    let image = plane / params.channels;
    let channel = plane - image * params.channels;
    var sum = 0.0;
    var inside = 0u;
    for (var kh = 0u; kh < params.kernel.x; kh += 1u) {
        for (var kw = 0u; kw < params.kernel.y; kw += 1u) {
            let at = tap(window, vec2<u32>(kh, kw));
            if (is_inside(at)) {
                sum += load_elem(x[position(vec4<u32>(image, channel, at))]);
                inside += 1u;
            }
        }
    }
    let count = select(inside, params.kernel.x * params.kernel.y, COUNT_PADDING);
    y[i] = store_elem(sum / f32(count));
}
