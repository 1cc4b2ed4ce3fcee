// y [n, c, oh, ow] = the largest element of x [n, c, h, w] in every window, and its position in the plane. Padding never wins, NaN
// always does; of equal elements the first wins, of several NaN the last.
//
// Bindings: 0: x, 1: y, 2: positions, both row-major. One invocation per window. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
alias num = f32;
const IS_FLOAT: bool = true;
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
@group(0) @binding(2) var<storage, read_write> positions: array<i32>;
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

fn is_nan(x: num) -> bool {
    return IS_FLOAT && (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

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
    // Beaten by the first element that is not padding.
    var best = num();
    var best_at = 0xffffffffu;
    for (var kh = 0u; kh < params.kernel.x; kh += 1u) {
        for (var kw = 0u; kw < params.kernel.y; kw += 1u) {
            let at = tap(window, vec2<u32>(kh, kw));
            if (is_inside(at)) {
                let value = load_elem(x[position(vec4<u32>(image, channel, at))]);
                if (best_at == 0xffffffffu || is_nan(value) || (!is_nan(best) && value > best)) {
                    best = value;
                    best_at = at.x * params.input.y + at.y;
                }
            }
        }
    }
    y[i] = store_elem(best);
    positions[i] = i32(best_at);
}
