//! Operations that work row by row.

use half::{bf16, f16};
use millgate_kernels::cuda::{self, Activation};
use millgate_kernels::reference;

use super::{check_close, gpu, poisoned, rounded};
use crate::random::Random;

fn norm<T: Activation>(rows: usize, width: usize, is_added: bool) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random((rows * width) as u64);
    let (x, mut plain_x) = rounded::<T>(&random.floats(rows * width));
    let (residual, plain_residual) = rounded::<T>(&random.floats(rows * width));
    let (weight, plain_weight) = rounded::<T>(&random.floats(width));
    let mut wanted = vec![0.0; rows * width];
    let (device_x, device_weight) = (gpu.upload(&x).unwrap(), gpu.upload(&weight).unwrap());
    let mut out = poisoned::<T>(gpu, rows * width);
    if is_added {
        reference::add(&mut plain_x, &plain_residual);
        let mut device_residual = gpu.upload(&residual).unwrap();
        let (to, w) = (out.view_mut(), device_weight.view());
        cuda::add_rms_norm(gpu, device_x.view(), device_residual.view_mut(), w, 1e-5, to).unwrap();
        check_close("residual", &device_residual, &plain_x, width, 1.0);
    } else {
        cuda::rms_norm(gpu, device_x.view(), device_weight.view(), 1e-5, out.view_mut()).unwrap();
    }
    reference::rms_norm(&plain_x, &plain_weight, 1e-5, &mut wanted);
    // In f32 the order of the sum and the reciprocal root weigh most, else rounding to the type does.
    let ulps = if T::SUFFIX == "f32" { 16.0 } else { 3.0 };
    check_close("norm", &out, &wanted, width, ulps);
}

#[test]
fn norms_equal_the_reference_for_all_types_and_odd_sizes() {
    for (rows, width) in [(1, 8), (3, 40), (2, 1000), (5, 4096), (1, 16384), (0, 64)] {
        for is_added in [false, true] {
            norm::<f32>(rows, width, is_added);
            norm::<bf16>(rows, width, is_added);
            norm::<f16>(rows, width, is_added);
        }
    }
}
