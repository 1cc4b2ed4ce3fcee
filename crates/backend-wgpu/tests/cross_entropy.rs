//! Targets that are no class: a test of its own, since the error stays with the device until it is cleared.

use orkest_core::autograd::BackwardOptions;
use orkest_core::{Device, Error, Tensor};
use orkest_wgpu as _;
use std::panic::Location;

#[test]
fn a_target_that_is_no_class_is_an_error_at_the_next_read() {
    let gpu = match Device::wgpu(0) {
        Ok(device) => device,
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => return println!("skipped: no adapter"),
    };
    let x = Tensor::new([[0.5f32, 1.0, 2.0], [1.0, 2.0, 3.0]], &gpu).requires_grad_(true);
    for wrong in [3, -1, 1000] {
        let target = Tensor::new([1i64, wrong], &gpu);
        let losses = x.cross_entropy_rows(&target, -100, 0.0);
        let at = Some(losses.origin().1);
        assert_eq!(at.map(Location::line), Some(line!() - 2));
        let expected = Error::IndexOutOfRange { op: "cross_entropy", index: wrong, size: 3, at };
        assert_eq!(losses.to_vec::<f32>().unwrap_err(), expected);
        assert_eq!(x.to_vec::<f32>().unwrap_err(), expected, "not cleared yet");
        gpu.clear_error();
        losses.backward_with(Some(&Tensor::ones([2], &gpu)), BackwardOptions::default());
        // A gradient has no line of its own: the loss's says where to look.
        let expected = Error::IndexOutOfRange { op: "cross_entropy_grad", index: wrong, size: 3, at };
        assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap_err(), expected);
        gpu.clear_error();
        // The row with the right target is as it should be: probabilities less one for the class.
        let losses = losses.to_vec::<f32>().unwrap();
        assert!((losses[0] - 1.4643685).abs() < 1e-5 && losses[1].is_nan(), "{losses:?}");
    }
    let ignored = x.cross_entropy_rows(&Tensor::new([1i64, -1], &gpu), -1, 0.0);
    assert_eq!(ignored.to_vec::<f32>().unwrap()[1], 0.0);
}
