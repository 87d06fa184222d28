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
    let ulps = if T::SUFFIX == "f32" { 64.0 } else { 3.0 };
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

fn gate<T: Activation>(rows: usize, width: usize) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(width as u64);
    let (gate_up, plain) = rounded::<T>(&random.floats(rows * 2 * width));
    let mut wanted = vec![0.0; rows * width];
    for (row, wanted) in plain.chunks(2 * width).zip(wanted.chunks_mut(width)) {
        reference::silu_mul(&row[..width], &row[width..], wanted);
    }
    let mut out = poisoned::<T>(gpu, rows * width);
    cuda::silu_mul(gpu, gpu.upload(&gate_up).unwrap().view(), width, out.view_mut()).unwrap();
    check_close("gate", &out, &wanted, width, if T::SUFFIX == "f32" { 16.0 } else { 1.0 });
}

fn bias<T: Activation>(rows: usize, width: usize) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(width as u64);
    let (y, mut wanted) = rounded::<T>(&random.floats(rows * width));
    let (bias, plain) = rounded::<T>(&random.floats(width));
    wanted.chunks_mut(width).for_each(|row| reference::add(row, &plain));
    let mut device = gpu.upload(&y).unwrap();
    cuda::add_bias(gpu, gpu.upload(&bias).unwrap().view(), device.view_mut()).unwrap();
    check_close("bias", &device, &wanted, width, 1.0);
}

#[test]
fn gates_and_biases_equal_the_reference() {
    for (rows, width) in [(1, 8), (3, 40), (2, 2056), (70, 64), (0, 16)] {
        gate::<f32>(rows, width);
        gate::<bf16>(rows, width);
        gate::<f16>(rows, width);
        bias::<f32>(rows, width);
        bias::<bf16>(rows, width);
        bias::<f16>(rows, width);
    }
}

#[test]
fn embeddings_come_from_ids_and_from_the_draws_of_the_step_before() {
    let Some(gpu) = gpu() else { return };
    let (vocab, width) = (11u32, 1032);
    let table: Vec<bf16> = (0..vocab as usize * width).map(|i| bf16::from_bits((i / 3) as u16)).collect();
    let device_table = gpu.upload(&table).unwrap();
    let previous = gpu.upload(&[4u32, u32::MAX, 10]).unwrap();
    let ids = [0, 10, cuda::DRAWN | 2, cuda::DRAWN, 3, 11, cuda::DRAWN | 1, cuda::DRAWN | 3];
    let rows = [0, 10, 10, 4, 3, 0, 0, 0];
    let mut out = poisoned::<bf16>(gpu, ids.len() * width);
    let device_ids = gpu.upload(&ids).unwrap();
    cuda::embed(gpu, device_ids.view(), previous.view(), device_table.view(), width, out.view_mut()).unwrap();
    let wanted: Vec<bf16> = rows.iter().flat_map(|&row| &table[row * width..][..width]).copied().collect();
    assert_eq!(out.read().unwrap(), wanted);
}

#[test]
fn rows_are_gathered_and_rows_that_are_not_there_are_zeros() {
    let Some(gpu) = gpu() else { return };
    let x: Vec<f32> = (0..5 * 12).map(|i| i as f32).collect();
    let rows = gpu.upload(&[4u32, 0, u32::MAX, 5, 4]).unwrap();
    let mut out = poisoned::<f32>(gpu, 5 * 12);
    cuda::gather_rows(gpu, gpu.upload(&x).unwrap().view(), rows.view(), 12, out.view_mut()).unwrap();
    let wanted = [&x[48..], &x[..12], &[0.0; 24], &x[48..]].concat();
    assert_eq!(out.read().unwrap(), wanted);
}

fn conversion<A: Activation, B: Activation + PartialEq + std::fmt::Debug>(len: usize) {
    let Some(gpu) = gpu() else { return };
    let (from, wide) = rounded::<A>(&Random(len as u64).floats(len));
    let wanted: Vec<B> = wide.iter().map(|&v| B::from_f32(v)).collect();
    let mut to = poisoned::<B>(gpu, len);
    cuda::convert(gpu, gpu.upload(&from).unwrap().view(), to.view_mut()).unwrap();
    assert_eq!(to.read().unwrap(), wanted, "{} to {}", A::SUFFIX, B::SUFFIX);
}

#[test]
fn conversions_round_as_the_host_does() {
    for len in [0, 1, 3, 4, 1027, 5000] {
        conversion::<f32, bf16>(len);
        conversion::<f32, f16>(len);
        conversion::<bf16, f32>(len);
        conversion::<bf16, f16>(len);
        conversion::<f16, f32>(len);
        conversion::<f16, bf16>(len);
    }
}

#[test]
fn views_that_wide_loads_cannot_read_are_refused_by_name_and_nothing_is_written() {
    let Some(gpu) = gpu() else { return };
    let (mut x, rows) = (gpu.upload(&[1.0f32; 132]).unwrap(), gpu.upload(&[0u32]).unwrap());
    let mut out = poisoned::<f32>(gpu, 64);
    let weight = gpu.upload(&[1.0f32; 64]).unwrap();
    let weight = weight.view();
    let odd_sum = cuda::add_rms_norm(gpu, weight, x.slice_mut(3..67), weight, 1e-5, out.view_mut());
    let odd = x.slice(1..65);
    let results = [
        ("rms_norm", 4, cuda::rms_norm(gpu, odd, weight, 1e-5, out.view_mut())),
        ("silu_mul", 8, cuda::silu_mul(gpu, x.slice(2..130), 64, out.view_mut())),
        ("add_bias", 4, cuda::add_bias(gpu, odd, out.view_mut())),
        ("gather_rows", 4, cuda::gather_rows(gpu, odd, rows.view(), 64, out.view_mut())),
        ("embed", 4, cuda::embed(gpu, rows.view(), rows.view(), odd, 64, out.view_mut())),
        ("convert", 4, cuda::convert(gpu, odd, poisoned::<bf16>(gpu, 64).view_mut())),
        ("add_rms_norm", 12, odd_sum),
    ];
    for (name, found, result) in results {
        let wanted = format!("{name}: bytes after a multiple of 16 at which a view starts is {found}, wanted 0");
        assert_eq!(result.unwrap_err().to_string(), wanted);
    }
    assert!(out.read().unwrap().iter().all(|number| number.is_nan()));
}
