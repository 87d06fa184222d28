//! The device that tests run on, and comparing what it computed.

use millgate_kernels::cuda::{Activation, Buffer, CudaError, Gpu};
use std::sync::OnceLock;

/// The first device. `None`, said aloud, where there is none and `MILLGATE_TEST_GPU=require` does not ask for one.
pub(crate) fn gpu() -> Option<&'static Gpu> {
    static OPENED: OnceLock<Result<Gpu, CudaError>> = OnceLock::new();
    match OPENED.get_or_init(|| Gpu::open(0)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            let is_required = std::env::var_os("MILLGATE_TEST_GPU").is_some_and(|value| value == "require");
            assert!(!is_required, "a GPU is required: {error}");
            #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
            {
                eprintln!("not run: {error} (`make check-cuda` runs it on an emulated one)");
            }
            None
        }
    }
}

/// What a GPU gets of these values: they are rounded to `T` first, for the reference as well.
pub(crate) fn rounded<T: Activation>(values: &[f32]) -> (Vec<T>, Vec<f32>) {
    let narrow: Vec<T> = values.iter().map(|&v| T::from_f32(v)).collect();
    let wide = narrow.iter().map(|&v| T::to_f32(v)).collect();
    (narrow, wide)
}

/// Memory full of NaN: an operation must write all of it.
pub(crate) fn poisoned<T: Activation>(gpu: &Gpu, len: usize) -> Buffer<T> {
    gpu.upload(&vec![T::from_f32(f32::NAN); len]).unwrap()
}

/// Every element within `ulps` units of `T`'s precision of what is wanted, relative to the largest of its row.
#[track_caller]
pub(crate) fn check_close<T: Activation>(what: &str, got: &Buffer<T>, wanted: &[f32], width: usize, ulps: f32) {
    let got: Vec<f32> = got.read().unwrap().into_iter().map(T::to_f32).collect();
    assert_eq!(got.len(), wanted.len(), "{what}: length");
    let precision = match T::SUFFIX {
        "f32" => f32::EPSILON,
        "f16" => 1.0 / 1024.0,
        _ => 1.0 / 128.0,
    };
    for (row, (got, wanted)) in got.chunks(width).zip(wanted.chunks(width)).enumerate() {
        let scale = wanted.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for (col, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
            let far = (got - wanted).abs();
            let allowed = ulps * precision * wanted.abs().max(scale / 16.0);
            assert!(far <= allowed, "{what} ({}): [{row}, {col}] is {got}, wanted {wanted}", T::SUFFIX);
        }
    }
}
