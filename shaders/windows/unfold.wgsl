// y [n, c kh kw, oh ow] = the patches of x [n, c, h, w] that windows cover, zero where they are padding, moved as bits.
//
// Bindings: 0: x, 1: y, row-major. ITEMS elements of y per invocation. No workgroup memory.

// variant
alias elem = u32;
// end variant

override WORKGROUP: u32 = 256u;
/// Elements per invocation.
override ITEMS: u32 = 1u;

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

/// Where an element of y is, from the last dimension to the first.
struct Place {
    window: vec2<u32>,
    point: vec2<u32>,
    channel: u32,
    image: u32,
}

fn place(i: u32) -> Place {
    let window_row = i / params.output.y;
    let point_column = window_row / params.output.x;
    let point_row = point_column / params.kernel.y;
    let channel = point_row / params.kernel.x;
    let image = channel / params.channels;
    return Place(
        vec2<u32>(window_row - point_column * params.output.x, i - window_row * params.output.y),
        vec2<u32>(point_row - channel * params.kernel.x, point_column - point_row * params.kernel.y),
        channel - image * params.channels,
        image,
    );
}

/// The place `step` further on: a sum of digits with what they carry, since divisions are dear.
fn advanced(at: Place, step: Place) -> Place {
    var next = Place(at.window + step.window, at.point + step.point, at.channel + step.channel, at.image + step.image);
    var over = next.window.y >= params.output.y;
    next.window.y -= select(0u, params.output.y, over);
    next.window.x += u32(over);
    over = next.window.x >= params.output.x;
    next.window.x -= select(0u, params.output.x, over);
    next.point.y += u32(over);
    over = next.point.y >= params.kernel.y;
    next.point.y -= select(0u, params.kernel.y, over);
    next.point.x += u32(over);
    over = next.point.x >= params.kernel.x;
    next.point.x -= select(0u, params.kernel.x, over);
    next.channel += u32(over);
    over = next.channel >= params.channels;
    next.channel -= select(0u, params.channels, over);
    next.image += u32(over);
    return next;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP * ITEMS;
    let end = min(params.n, first + WORKGROUP * ITEMS);
    var at = place(first + local);
    let step = place(WORKGROUP);
    for (var i = first + local; i < end; i += WORKGROUP) {
        let inside = tap(at.window, at.point);
        var value = elem();
        if (is_inside(inside)) {
            value = x[position(vec4<u32>(at.image, at.channel, inside))];
        }
        y[i] = value;
        at = advanced(at, step);
    }
}
