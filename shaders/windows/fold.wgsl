// y [n, c, h, w] = the patches x [n, c kh kw, oh ow] summed back where they came from: each pixel collects what is its own.
//
// Bindings: 0: x (the strides of its windows are given for rows and columns of them), 1: y, row-major. One invocation per pixel,
// points of the window in order. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
alias num = f32;
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
    // Plane, row and column of the pixel.
    let row = i / params.input.y;
    let plane = row / params.input.x;
    let pixel = vec2<u32>(row - plane * params.input.x, i - row * params.input.y);
    let image = plane / params.channels;
    let channel = plane - image * params.channels;
    var sum = num();
    for (var kh = 0u; kh < params.kernel.x; kh += 1u) {
        // The window times the stride; wraps to something large where the point lies outside.
        let top = pixel.x + params.padding.x - kh * params.dilation.x;
        let window_row = top / params.stride.x;
        if (window_row >= params.output.x || window_row * params.stride.x != top) {
            continue;
        }
        for (var kw = 0u; kw < params.kernel.y; kw += 1u) {
            let left = pixel.y + params.padding.y - kw * params.dilation.y;
            let window_column = left / params.stride.y;
            if (window_column < params.output.y && window_column * params.stride.y == left) {
                let patch_row = (channel * params.kernel.x + kh) * params.kernel.y + kw;
                sum += load_elem(x[position(vec4<u32>(image, patch_row, window_row, window_column))]);
            }
        }
    }
    y[i] = store_elem(sum);
}
