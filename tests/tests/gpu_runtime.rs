//! What a program notices of the GPU beyond numbers: errors that name its lines, memory that stays flat, reads that do not block,
//! devices it can choose from, profiles, and caches.

use orkest::prelude::*;
use orkest::{DeviceType, Error, devices};
use orkest_tests::conformance::turn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};

/// Set in child processes, which run one test of this file in another environment.
const CHILD: &str = "ORKEST_TESTS_CHILD";

/// The first adapter. With `ORKEST_REQUIRE_GPU=1` there must be one.
fn gpu() -> Option<Device> {
    match Device::wgpu(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => {
            println!("skipped: no adapter");
            None
        }
    }
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// This test in a process of its own, by way of a shell line that may limit what it gets.
fn child(test: &str, limits: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{limits} exec \"$0\" --exact \"$1\" --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(CHILD, "1");
    for (name, value) in variables {
        command.env(name, value);
    }
    command.output().unwrap()
}

/// What a child printed, having succeeded.
#[track_caller]
fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{all}");
    all
}

// ---- errors --------------------------------------------------------------------------------------------------------------

#[test]
fn a_bad_index_names_the_operation_and_the_users_line() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let table = Embedding::new(10, 4).to(&gpu);
    let scores = Tensor::zeros([2, 3], &gpu);
    let (ids, far) = (Tensor::new([2i64, 10], &gpu), Tensor::new([[10i64], [0]], &gpu));
    let loss = CrossEntropyLoss::new();
    type Call<'a> = (&'static str, u32, Box<dyn Fn() -> Tensor + 'a>);
    let calls: Vec<Call<'_>> = vec![
        ("embedding", line!(), Box::new(|| table.forward(&ids))),
        ("gather", line!(), Box::new(|| scores.gather(1, &far))),
        ("index_select", line!(), Box::new(|| scores.index_select(1, &ids))),
        ("cross_entropy", line!(), Box::new(|| loss.forward(&scores, &ids))),
        ("scatter_add", line!(), Box::new(|| scores.scatter_add(1, &far, &scores))),
    ];
    for (name, line, call) in calls {
        let y = call();
        // Work goes on, and whatever is read next has the error.
        let other = scores.exp();
        let error = other.to_vec::<f32>().unwrap_err();
        let Error::IndexOutOfRange { op, index: 10, at: Some(at), .. } = error else {
            panic!("{name}: {error}");
        };
        assert_eq!(op, name, "{error}");
        assert_eq!((at.file().ends_with("gpu_runtime.rs"), at.line()), (true, line), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("gpu_runtime.rs:{line}")), "{text}");
        gpu.clear_error();
        drop(y);
        assert_eq!(scores.exp().sum(..).item().unwrap(), 6.0, "{name}: cleared");
    }
}

#[test]
fn a_thousand_steps_later_the_line_is_still_known() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let table = Tensor::zeros([4, 2], &gpu);
    let line = line!() + 1;
    let _bad = table.index_select(0, &Tensor::new([4i64], &gpu));
    let good = Tensor::new([1i64], &gpu);
    let last = (0..1000).fold(table.clone(), |_, _| table.index_select(0, &good));
    let error = last.to_vec::<f32>().unwrap_err();
    gpu.clear_error();
    assert!(
        matches!(error, Error::IndexOutOfRange { index: 4, size: 4, at: Some(at), .. } if at.line() == line),
        "{error}"
    );
}

#[test]
fn when_memory_runs_out_smaller_work_goes_on() {
    let name = "when_memory_runs_out_smaller_work_goes_on";
    if !is_child() {
        if gpu().is_none() || !cfg!(target_os = "linux") {
            return;
        }
        // A software adapter's memory is the process's own, which the shell can limit; elsewhere the device's limit is met.
        let said = said(&child(name, "ulimit -v 3000000 &&", &[]));
        assert!(said.contains("went on"), "{said}");
        return;
    }
    let gpu = gpu().unwrap();
    let x = Tensor::ones([1000], &gpu);
    let largest = devices().into_iter().find(|d| d.name == "wgpu").unwrap().max_tensor_bytes.unwrap();
    let n = (largest.min(100 << 20) / 4) as usize;
    let mut held = Vec::new();
    let error = loop {
        match Tensor::try_zeros([n], &gpu) {
            Ok(t) => held.push(t),
            Err(e) => break e,
        }
        assert!(held.len() < 100_000, "memory without end");
    };
    assert!(matches!(error, Error::OutOfMemory { .. }), "after {}: {error}", held.len());
    assert!(error.to_string().contains(&format!("{} bytes", n * 4)), "{error}");
    assert!(held.len() >= 2, "{error}");
    // An operation panics, since its result has nowhere to go, and leaves the device as it was.
    let sum = catch_unwind(AssertUnwindSafe(|| (0..).map(|_| &held[0] + 1.0).take(3).collect::<Vec<_>>()));
    assert!(sum.is_err());
    assert_eq!((&x + 1.0).sum(..).item().unwrap(), 2000.0, "small work goes on beside what is held");
    held.truncate(1);
    assert_eq!(
        (&held[0] + 1.0).narrow(0, 0, 5).to_vec::<f32>().unwrap(),
        [1.0; 5],
        "and large work when there is room"
    );
    println!("went on");
}

#[test]
fn a_tensor_above_the_largest_buffer_is_refused_with_the_limit() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let largest = devices().into_iter().find(|d| d.name == "wgpu").unwrap().max_tensor_bytes.unwrap();
    let n = (largest / 4) as usize + 1;
    let error = Tensor::try_zeros([n], &gpu).unwrap_err().to_string();
    assert!(error.contains("too large") && error.contains(&largest.to_string()), "{error}");
    assert!(error.contains(&(n * 4).to_string()), "{error}");
    assert_eq!(Tensor::ones([3], &gpu).sum(..).item().unwrap(), 3.0);
}

#[test]
fn results_above_the_largest_buffer_are_refused_by_every_family_of_operations() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let largest = devices().into_iter().find(|d| d.name == "wgpu").unwrap().max_tensor_bytes.unwrap();
    let (rows, columns) = (1024, (largest / 4096) as usize + 1);
    // A view of little memory: what it repeats does not fit.
    let line = Tensor::ones([1, columns], &gpu);
    let wide = line.expand([rows, columns]);
    let tall = Tensor::ones([rows, 1], &gpu);
    let first = Tensor::zeros([rows], &gpu).to_dtype(DType::I64);
    let refused = |op: &str, f: &dyn Fn() -> Tensor| {
        let outcome = catch_unwind(AssertUnwindSafe(|| drop(f())));
        let text = orkest_tests::parity::message(&*outcome.expect_err(op));
        assert!(text.contains("too large") && text.contains(&largest.to_string()), "{op}: {text}");
        assert!(text.starts_with(op), "{op}: {text}");
    };
    refused("exp", &|| wide.exp());
    refused("add", &|| &tall + &line);
    refused("gt", &|| wide.gt(0.0));
    refused("copy", &|| wide.contiguous());
    refused("to_dtype", &|| wide.to_dtype(DType::I32));
    refused("matmul", &|| tall.matmul(&line));
    refused("softmax", &|| wide.softmax(-1));
    refused("layer_norm", &|| wide.layer_norm(columns, None, None, 1e-5));
    refused("cumsum", &|| wide.cumsum(0));
    refused("sort", &|| wide.sort(0, false).0);
    refused("cat", &|| Tensor::cat(&vec![&line; rows], 0));
    refused("index_select", &|| line.index_select(0, &first));
    refused("full", &|| Tensor::full([rows, columns], 1.0, &gpu));
    // What comes out small is computed, however large the view.
    assert_eq!(wide.max(..).item().unwrap(), 1.0);
    assert_eq!(wide.sum(0).narrow(0, 0, 2).to_vec::<f32>().unwrap(), [1024.0; 2]);
}

#[test]
fn integers_that_need_more_than_32_bits_are_errors_not_wrong_numbers() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let large = Tensor::full([3, 3], 1_000_000_000i64, &gpu);
    let row = Tensor::new([50_000i64, -50_000, 50_000], &gpu);
    let error = |t: Tensor, line: u32| {
        let error = t.to_vec::<i64>().unwrap_err().to_string();
        assert!(
            error.contains("does not fit") && error.contains(&format!("gpu_runtime.rs:{line}")),
            "{error}"
        );
        gpu.clear_error();
    };
    error(large.sum(1), line!());
    error(large.sum(..), line!());
    error(row.prod(0), line!());
    error(large.cumsum(0), line!());
    error(large.matmul(&large), line!());
    error(Tensor::full([100_000], 30_000i64, &gpu).sum(..), line!());
    assert!(Tensor::try_zeros([2], &gpu).is_ok());
    assert!(Tensor::new([3i64], &Device::cpu()).try_to(&gpu).is_ok());
    assert!(
        Tensor::new([1i64 << 31], &Device::cpu())
            .try_to(&gpu)
            .unwrap_err()
            .to_string()
            .contains("does not fit")
    );

    // What fits is exact, also where f32 would round, and where a part of it does not fit.
    let odd = Tensor::new([16_777_217i64, 16_777_219, -3], &gpu);
    assert_eq!(odd.sum(0).item_as::<i64>().unwrap(), 33_554_433);
    assert_eq!(odd.cumsum(0).to_vec::<i64>().unwrap(), [16_777_217, 33_554_436, 33_554_433]);
    let there_and_back = Tensor::new([2_000_000_000i64, 2_000_000_000, -2_000_000_000, -1_999_999_999], &gpu);
    assert_eq!(there_and_back.sum(0).item_as::<i64>().unwrap(), 1);
    assert_eq!(Tensor::new([46_340i64, -46_340], &gpu).prod(0).item_as::<i64>().unwrap(), -2_147_395_600);
    let (a, b) = (Tensor::new([[30_000i64, 7]], &gpu), Tensor::new([[30_000i64], [1]], &gpu));
    assert_eq!(a.matmul(&b).item_as::<i64>().unwrap(), 900_000_007);
    assert_eq!(Tensor::ones([1000, 1000], &gpu).eq(1.0).sum(..).item().unwrap(), 1e6);
}

/// A forked process has none of the driver's threads: what it asked the device for would never come.
#[cfg(unix)]
#[test]
fn a_forked_process_is_told_that_it_cannot_use_the_device() {
    let name = "a_forked_process_is_told_that_it_cannot_use_the_device";
    if !is_child() {
        if gpu().is_some() {
            // In a process of its own, since no other test's thread may hold a lock while it forks.
            let said = said(&child(name, "", &[]));
            assert!(said.contains("the parent went on"), "{said}");
        }
        return;
    }
    let gpu = gpu().unwrap();
    let x = Tensor::ones([1000], &gpu);
    assert_eq!(x.sum(..).item().unwrap(), 1000.0);
    let pending = (&x + 2.0).sum(..).item_async();
    let told = tempfile::NamedTempFile::new().unwrap();
    // SAFETY: the child runs this thread only, and takes no lock that another thread of this small process could hold.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let text = |error: Error| error.to_string();
        let panics = |f: &dyn Fn() -> Tensor| {
            let outcome = catch_unwind(AssertUnwindSafe(|| drop(f())));
            outcome.err().map_or("it went on".into(), |e| orkest_tests::parity::message(&*e))
        };
        std::panic::set_hook(Box::new(|_| ()));
        let all = [
            x.to_vec::<f32>().map_or_else(text, |_| "it was read".into()),
            (&x + 1.0).sum(..).item().map_or_else(text, |_| "it computed".into()),
            pollster::block_on(pending).map_or_else(text, |_| "it came".into()),
            gpu.synchronize().map_or_else(text, |_| "it was done".into()),
            Tensor::try_zeros([123_457], &gpu).map_or_else(text, |_| "there was memory".into()),
            panics(&|| Tensor::new([3.0f32, 4.0], &gpu)),
            panics(&|| (0..1000).fold(x.clone(), |x, _| x.tanh())),
            Device::wgpu(1).map_or_else(text, |_| "there was another".into()),
        ];
        let written = std::fs::write(told.path(), all.join("\n"));
        // SAFETY: the process ends at once, without what the parent has registered for its own end.
        unsafe { libc::_exit(i32::from(written.is_err())) };
    }
    assert!(pid > 0, "no process could be forked");
    let mut status = 0;
    let mut is_over = || {
        // SAFETY: `pid` is a child of this process that has not been waited for; `status` outlives the call.
        unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) == pid }
    };
    let ended = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        is_over()
    });
    if !ended {
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let told = std::fs::read_to_string(told.path()).unwrap();
    assert!(ended && status == 0, "status {status}, ended {ended}: {told}");
    assert_eq!(told.lines().count(), 8, "{told}");
    for line in told.lines() {
        assert!(line.contains("it was forked from process") && line.contains("cannot use the GPU"), "{told}");
    }
    // The parent does not notice.
    assert_eq!(pollster::block_on(pending).unwrap(), 3000.0);
    println!("the parent went on");
}

// ---- devices -------------------------------------------------------------------------------------------------------------

#[test]
fn an_adapter_that_is_not_there_is_described() {
    let name = "an_adapter_that_is_not_there_is_described";
    if is_child() {
        match Device::wgpu(0) {
            Ok(device) => println!("opened {device:?}"),
            Err(e) => println!("message: {e}"),
        }
        return;
    }
    let Some(gpu) = gpu() else { return };
    let adapter = gpu.backend().name().trim_start_matches("wgpu: ").to_string();
    let message = |variables: &[(&str, &str)]| said(&child(name, "", variables));

    let filtered = message(&[("WGPU_ADAPTER_NAME", "no such adapter")]);
    assert!(filtered.contains("message: device wgpu:0 is not available"), "{filtered}");
    assert!(
        filtered.contains("WGPU_ADAPTER_NAME=no such adapter") && filtered.contains(&adapter),
        "{filtered}"
    );
    let part = message(&[("WGPU_ADAPTER_NAME", &adapter[1..4].to_uppercase())]);
    assert!(part.contains("opened"), "{part}");

    if cfg!(target_os = "linux") {
        let metal = message(&[("WGPU_BACKEND", "metal")]);
        assert!(
            metal.contains("WGPU_BACKEND=metal (this program knows vulkan)") && metal.contains(&adapter),
            "{metal}"
        );
        assert!(message(&[("WGPU_BACKEND", "vulkan")]).contains("opened"));
        let gl = message(&[("WGPU_BACKEND", "gl")]);
        assert!(gl.contains("WGPU_BACKEND=gl (this program knows vulkan)"), "{gl}");
        let none = message(&[("VK_ICD_FILENAMES", "/nowhere.json"), ("VK_DRIVER_FILES", "/nowhere.json")]);
        assert!(none.contains("no GPU adapter was found (drivers: "), "{none}");
        assert!(none.contains("apt-get install mesa-vulkan-drivers"), "{none}");
    }
    let beyond = Device::wgpu(99).unwrap_err().to_string();
    assert!(
        beyond.contains("device wgpu:99 is not available: found wgpu:0") && beyond.contains(&adapter),
        "{beyond}"
    );
}

#[test]
fn the_best_device_is_hardware_or_the_cpu_unless_the_environment_says_otherwise() {
    let name = "the_best_device_is_hardware_or_the_cpu_unless_the_environment_says_otherwise";
    if is_child() {
        let best = Device::best();
        println!("best: {best}, {}", Tensor::ones([2], &best).sum(..).item().unwrap());
        return;
    }
    let found = devices();
    assert_eq!((found[0].name.as_str(), found[0].device_type), ("cpu", DeviceType::Cpu));
    assert!(found[0].memory.is_none_or(|bytes| bytes > 1 << 28));
    let hardware = |d: &&orkest::DeviceInfo| {
        matches!(d.device_type, DeviceType::DiscreteGpu | DeviceType::IntegratedGpu | DeviceType::VirtualGpu)
    };
    let best = |variables: &[(&str, &str)]| {
        let all = said(&child(name, "", variables));
        all.lines().find_map(|l| l.split_once("best: ")).unwrap_or_else(|| panic!("{all}")).1.to_string()
    };
    let expected = found.iter().find(hardware).map_or("cpu", |d| d.name.as_str());
    assert_eq!(best(&[("ORKEST_DEVICE", "")]), format!("{expected}, 2"));
    assert_eq!(best(&[("ORKEST_DEVICE", "cpu")]), "cpu, 2");
    for (asked, message) in [
        ("wgpu:99", "ORKEST_DEVICE=wgpu:99: device wgpu:99 is not available"),
        ("wgpuu", "ORKEST_DEVICE=wgpuu: "),
        ("wgpu:one", "\"one\" is not a device number"),
    ] {
        let wrong = child(name, "", &[("ORKEST_DEVICE", asked)]);
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(!wrong.status.success() && said.contains(message), "{asked}: {said}");
    }
    if gpu().is_none() {
        return;
    }
    assert_eq!(best(&[("ORKEST_DEVICE", "wgpu")]), "wgpu, 2");
    let listed = found.iter().find(|d| d.name == "wgpu").expect("what can be opened is listed");
    assert_eq!(Device::parse(&listed.name).unwrap(), Device::wgpu(0).unwrap());
    assert!(Device::wgpu(0).unwrap().backend().name().ends_with(&listed.description));
}

// ---- reads ---------------------------------------------------------------------------------------------------------------

#[test]
fn reads_can_be_awaited() {
    let mut all = vec![Device::cpu()];
    all.extend(gpu());
    let _turn = turn();
    for device in all {
        let x = Tensor::arange(0, 1000, 1, &device).to_dtype(DType::F32);
        // All are under way before the first is awaited, and each sees its own moment.
        let mut y = x.clone();
        let reads: Vec<_> = (0..20)
            .map(|_| {
                y += 1.0;
                (y.sum(..).item_async(), y.narrow(0, 3, 2).to_vec_async::<f32>())
            })
            .collect();
        y.fill_(0.0);
        for (i, (sum, part)) in reads.into_iter().enumerate().rev() {
            let i = i as f64 + 1.0;
            assert_eq!(pollster::block_on(sum).unwrap(), 499_500.0 + 1000.0 * i, "{device}");
            assert_eq!(pollster::block_on(part).unwrap(), [3.0 + i as f32, 4.0 + i as f32], "{device}");
        }
        // On another thread; and one that is never awaited harms nobody.
        let (sent, dropped) = (x.to_vec_async::<f32>(), x.to_vec_async::<f32>());
        drop(dropped);
        let values = std::thread::spawn(move || pollster::block_on(sent)).join().unwrap().unwrap();
        assert_eq!(values[999], 999.0);
        assert_eq!(
            pollster::block_on(x.gt(998.0).to_vec_async::<bool>()).unwrap().iter().filter(|&&b| b).count(),
            1
        );
        assert!(pollster::block_on(x.to_vec_async::<i64>()).unwrap_err().to_string().contains("holds f32"));
        assert!(pollster::block_on(x.item_async()).unwrap_err().to_string().contains("one element"));
        assert_eq!(
            pollster::block_on(Tensor::zeros([0], &device).to_vec_async::<f32>()).unwrap(),
            [0.0f32; 0]
        );
    }
}

#[test]
fn an_awaited_read_reports_errors_too() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let bad = Tensor::zeros([2, 2], &gpu).index_select(0, &Tensor::new([5i64], &gpu));
    let error = pollster::block_on(bad.to_vec_async::<f32>()).unwrap_err();
    gpu.clear_error();
    assert!(matches!(error, Error::IndexOutOfRange { index: 5, size: 2, at: Some(_), .. }), "{error}");
    assert_eq!(pollster::block_on(Tensor::ones([2], &gpu).sum(..).item_async()).unwrap(), 2.0);
}

// ---- order and memory ----------------------------------------------------------------------------------------------------

#[derive(Module)]
struct Net {
    embedding: Embedding,
    fc1: Linear,
    fc2: Linear,
}

impl Net {
    fn new() -> Net {
        manual_seed(5);
        Net { embedding: Embedding::new(30, 8), fc1: Linear::new(8, 16), fc2: Linear::new(16, 2) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.fc1.forward(&self.embedding.forward(x).mean(1)).relu())
    }
}

/// Trains with a fresh upload in every step and no read but the last; the mean loss of every hundred steps, and the most memory
/// that was in use or kept after the first hundred.
fn train(device: &Device, steps: usize) -> (Vec<f32>, Option<(usize, usize)>) {
    let (net, criterion) = (Net::new().to(device), CrossEntropyLoss::new());
    let mut optimizer = Adam::new(net.parameters(), 1e-3);
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as i64 % below as i64
    };
    let mut losses = Vec::new();
    let mut sum = Tensor::zeros([], device);
    let held = || device.memory_stats().live_bytes + device.memory_stats().idle_bytes;
    let (mut early, mut late) = (0, 0);
    for step in 1..=steps {
        let ids: Vec<i64> = (0..24).map(|_| random(30)).collect();
        let labels: Vec<i64> = ids.chunks(6).map(|row| i64::from(row.iter().sum::<i64>() > 87)).collect();
        let inputs = Tensor::from_slice(&ids, [4, 6], device);
        let labels = Tensor::from_slice(&labels, [4], device);
        optimizer.zero_grad();
        let loss = criterion.forward(&net.forward(&inputs), &labels);
        loss.backward();
        optimizer.step();
        sum += &loss.detach();
        if step % 100 == 0 {
            losses.push(&sum / 100.0);
            sum = Tensor::zeros([], device);
        }
        let held = held();
        if step <= 200 { early = early.max(held) } else { late = late.max(held) }
    }
    let losses = losses.iter().map(|l| l.item().unwrap() as f32).collect();
    (losses, Some((early, late)))
}

#[test]
fn ten_thousand_steps_without_a_read_keep_memory_flat_and_give_the_cpus_losses() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let steps = 10_000;
    let (losses, memory) = train(&gpu, steps);
    let (expected, _) = train(&Device::cpu(), steps);
    let (early, late) = memory.unwrap();
    // A hundred kept losses take 256 bytes each.
    assert!(late <= early + 100 * 256 + (64 << 10), "{early} bytes at first, {late} later");
    assert!(expected[99] < 0.5 * expected[0], "nothing was learned: {expected:?}");
    for (i, (a, b)) in losses.iter().zip(&expected).enumerate() {
        let tolerance = if i < 10 { 1e-4 } else { 2e-2 }; // rounding grows with every step
        assert!((a - b).abs() < tolerance, "steps {}..: {a} on the GPU, {b} on the CPU", i * 100);
    }
}

/// Only the result of a product takes memory: operands of any strides are read where they lie.
#[test]
fn products_make_no_copies_of_transposed_and_repeated_operands() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let batch = Tensor::ones([64, 256, 128], &gpu); // 8 MiB, the results half of one at most
    let narrow = Tensor::ones([64, 256, 8], &gpu);
    let weight = Tensor::ones([8, 128], &gpu);
    let one = Tensor::ones([1, 128, 8], &gpu);
    type Product<'a> = (&'static str, f64, Box<dyn Fn() -> Tensor + 'a>);
    let products: Vec<Product<'_>> = vec![
        ("A B, B for all of a batch", 128.0, Box::new(|| batch.matmul(&one.expand([64, 128, 8])))),
        ("A B\u{1d40}", 128.0, Box::new(|| batch.matmul(&weight.t()))),
        ("A\u{1d40} B", 256.0, Box::new(|| batch.transpose(1, 2).matmul(&narrow))),
        ("rows within rows", 64.0, Box::new(|| batch.narrow(2, 64, 64).matmul(&one.narrow(1, 0, 64)))),
        ("a column", 128.0, Box::new(|| batch.matmul(&weight.select(0, 3)))),
        ("batches in another order", 128.0, Box::new(|| batch.flip(&[0]).matmul(&one.expand([64, 128, 8])))),
        ("two batch dimensions, one repeated", 128.0, {
            Box::new(|| {
                let four = batch.reshape([8, 8, 256, 128]).transpose(0, 1);
                four.matmul(&one.expand([8, 128, 8]).unsqueeze(1))
            })
        }),
    ];
    for (name, expected, run) in products {
        gpu.synchronize().unwrap();
        gpu.reset_peak_memory();
        let before = gpu.memory_stats().live_bytes;
        let y = run();
        let taken = gpu.memory_stats().peak_bytes - before;
        assert!(taken <= 2 << 20, "{name}: {taken} bytes for a result of {}", y.numel() * 4);
        assert_eq!((y.min(..).item().unwrap(), y.max(..).item().unwrap()), (expected, expected), "{name}");
    }
}

#[test]
fn an_upload_between_two_operations_does_not_overtake_the_first() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    // Every round drops a tensor that recorded work still reads, then uploads one of the same size, which wants its memory.
    for n in [1, 64, 5000] {
        let mut total = Tensor::zeros([n], &gpu);
        let rounds = 500;
        for i in 0..rounds {
            let fresh = Tensor::from_slice(&vec![i as f32; n], [n], &gpu);
            total += &fresh;
        }
        let expected = (0..rounds).sum::<i32>() as f32;
        assert_eq!(total.to_vec::<f32>().unwrap(), vec![expected; n]);
    }
}

#[test]
fn more_work_than_fits_into_one_grid_dimension_is_all_done() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    // 65535 workgroups of 256 invocations are 16.8 million elements.
    let n = 17_000_003;
    let x = Tensor::ones([n], &gpu);
    let y = &x + 1.0;
    assert_eq!((y.min(0).item().unwrap(), y.max(0).item().unwrap()), (2.0, 2.0));
    let sum = y.sum(..).item().unwrap();
    assert!((sum - 2.0 * n as f64).abs() <= 8.0, "{sum}"); // numbers as large as this are multiples of 4
    drop((x, y));
    // One workgroup per row, or several rows to one: more rows than a dimension has workgroups.
    let (rows, cols) = (70_001, 3);
    let x = Tensor::arange(0, rows as i64, 1, &gpu)
        .to_dtype(DType::F32)
        .reshape([rows as isize, 1])
        .expand([rows, cols]);
    let sums = x.sum(1).to_vec::<f32>().unwrap();
    assert!((0..rows).all(|i| sums[i] == 3.0 * i as f32));
    let softmax = x.softmax(-1).to_vec::<f32>().unwrap();
    assert!(softmax.iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-6));
    let picked = Tensor::arange(0, 5, 1, &gpu)
        .to_dtype(DType::F32)
        .index_select(0, &Tensor::full([n], 4, &gpu).to_dtype(DType::I64));
    assert_eq!(picked.min(0).item().unwrap(), 4.0);
}

#[test]
fn threads_share_the_device() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let work = |seed: usize| -> Vec<f32> {
        let start: Vec<f32> = (0..256).map(|i| ((i * 7 + seed) % 13) as f32 / 13.0).collect();
        let w = Tensor::from_slice(&start, [16, 16], &gpu).requires_grad_(true);
        let mut x = Tensor::from_slice(&start, [16, 16], &gpu);
        for i in 0..50 {
            // Uploads, launches, gradients and reads of all threads interleave.
            x = (x.matmul(&w.detach()) + Tensor::from_slice(&[i as f32], [1], &gpu)).tanh();
            if i % 10 == 0 {
                (&x * &w).sum(..).backward();
                assert!(pollster::block_on(x.sum(..).item_async()).unwrap().is_finite());
            }
        }
        [x.to_vec::<f32>().unwrap(), w.grad().unwrap().to_vec::<f32>().unwrap()].concat()
    };
    let alone: Vec<Vec<f32>> = (0..4).map(work).collect();
    let together: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || work(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together, "the same bits, whoever else works");
}

// ---- profile and caches --------------------------------------------------------------------------------------------------

#[test]
fn a_profile_has_the_gpus_own_times() {
    let name = "a_profile_has_the_gpus_own_times";
    if is_child() {
        let (a, b) = (gpu().unwrap(), Device::cpu());
        for device in [a, b] {
            let x = Tensor::ones([256, 256], &device);
            let y = (0..5).fold(x.clone(), |y, _| y.matmul(&x).softmax(-1));
            assert!((y.sum(..).item().unwrap() - 256.0).abs() < 1e-2);
        }
        return;
    }
    if gpu().is_none() {
        return;
    }
    for features in ["all", "base"] {
        // The plainest device has no timestamps: there the host's clock must do.
        let table = said(&child(name, "", &[("ORKEST_PROFILE", "1"), ("ORKEST_WGPU_FEATURES", features)]));
        for device in ["wgpu", "cpu"] {
            let row = |op: &str| -> Vec<f64> {
                let prefix = format!("{device} {op} ");
                let line =
                    table.lines().find(|l| l.starts_with(&prefix)).unwrap_or_else(|| panic!("{op}: {table}"));
                line[prefix.len()..]
                    .split_whitespace()
                    .map(|w| w.trim_end_matches('%').parse().unwrap())
                    .collect()
            };
            let [calls, ms, us_per_call, mb, gb_per_s, share] = row("matmul")[..] else { panic!("{table}") };
            assert_eq!(calls, 5.0, "{table}");
            assert!((mb - 5.0 * 3.0 * 0.262_144).abs() < 1e-3, "{table}");
            // 5 products of 2 * 256³ operations take some time, on anything.
            assert!(ms > 0.005 && us_per_call > 1.0 && gb_per_s >= 0.0 && share > 0.0, "{table}");
            assert_eq!(row("softmax")[0], 5.0, "{table}");
        }
    }
}

/// Compiling is most of a program's first step: what is not needed must not creep in.
#[test]
fn the_first_step_compiles_few_pipelines() {
    let name = "the_first_step_compiles_few_pipelines";
    if is_child() {
        let (gpu, start) = (gpu().unwrap(), std::time::Instant::now());
        let net = Net::new().to(&gpu);
        let mut optimizer = Adam::new(net.parameters(), 1e-3);
        let ids = Tensor::from_slice(&(0..24).collect::<Vec<i64>>(), [4, 6], &gpu);
        let labels = Tensor::from_slice(&[0i64, 1, 1, 0], [4], &gpu);
        let loss = CrossEntropyLoss::new().forward(&net.forward(&ids), &labels);
        loss.backward();
        optimizer.step();
        assert!(loss.item().unwrap().is_finite());
        println!("first loss after {:.2} s", start.elapsed().as_secs_f64());
        return;
    }
    if gpu().is_none() {
        return;
    }
    let table = said(&child(name, "", &[("ORKEST_PROFILE", "1"), ("ORKEST_CACHE_DIR", "")]));
    let line =
        table.lines().find_map(|l| l.strip_prefix("wgpu (compile) ")).unwrap_or_else(|| panic!("{table}"));
    let compiled: usize = line.split_whitespace().next().unwrap().parse().unwrap();
    let launches: usize = table
        .lines()
        .filter(|l| l.starts_with("wgpu ") && !l.starts_with("wgpu ("))
        .map(|l| l.split_whitespace().nth(2).unwrap().parse::<usize>().unwrap())
        .sum();
    println!("{table}");
    assert!(compiled <= MOST_PIPELINES, "{compiled} pipelines for {launches} operations:\n{table}");
}

/// For an embedding, a mean, two linear layers, cross-entropy and Adam, forwards and backwards.
const MOST_PIPELINES: usize = 24;

#[test]
fn compiled_pipelines_are_kept_and_a_damaged_file_does_no_harm() {
    let name = "compiled_pipelines_are_kept_and_a_damaged_file_does_no_harm";
    if is_child() {
        let gpu = gpu().unwrap();
        assert_eq!((Tensor::ones([8], &gpu) + 1.0).sum(..).item().unwrap(), 16.0);
        // The file is written in the background, a moment after the last pipeline.
        std::thread::sleep(std::time::Duration::from_millis(1000));
        return;
    }
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let run = |cache: &str| drop(said(&child(name, "", &[("ORKEST_CACHE_DIR", cache)])));
    let files = || -> Vec<_> {
        std::fs::read_dir(&kept).map_or(Vec::new(), |d| d.map(|f| f.unwrap().path()).collect())
    };
    run("");
    assert!(files().is_empty());
    run(kept.to_str().unwrap());
    if files().is_empty() {
        println!("{}: no pipeline cache here", gpu.backend().name());
        return;
    }
    let file = files().pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    run(kept.to_str().unwrap());
    for damaged in [&whole[..whole.len() / 2], b"nonsense", &[]] {
        std::fs::write(&file, damaged).unwrap();
        run(kept.to_str().unwrap());
        assert_eq!(files(), std::slice::from_ref(&file));
        assert_ne!(std::fs::read(&file).unwrap(), damaged, "it was not replaced");
    }
}
