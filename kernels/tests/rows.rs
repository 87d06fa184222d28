//! Norms, sums and gates: right in odd sizes, the same bits whatever the neighbours and threads.

use crate::random::{Random, assert_close, assert_same_bits, poison, pools};
use millgate_kernels::{KernelError, Pool, add, add_rms_norm, reference, rms_norm, silu_mul};

const SIZES: [(usize, usize); 8] = [(1, 1), (1, 7), (2, 16), (3, 33), (1, 1024), (40, 515), (33, 4096), (5, 100)];

#[test]
fn norms_agree_with_the_reference() {
    let mut random = Random(10);
    for pool in pools(2) {
        for (rows, width) in SIZES {
            let (x, weight) = (random.floats(rows * width), random.floats(width));
            let (mut found, mut wanted) = (poison(x.len()), poison(x.len()));
            rms_norm(&pool, &x, &weight, 1e-6, &mut found).unwrap();
            reference::rms_norm(&x, &weight, 1e-6, &mut wanted);
            let context = format!("{:?} {rows} x {width}", pool.level());
            assert_close(&found, &wanted, 2e-6, &context);

            let before = random.floats(x.len());
            let (mut residual, mut fused) = (before.clone(), poison(x.len()));
            add_rms_norm(&pool, &mut residual, &x, &weight, 1e-6, &mut fused).unwrap();
            let mut summed = before;
            add(&pool, &mut summed, &x).unwrap();
            rms_norm(&pool, &summed, &weight, 1e-6, &mut found).unwrap();
            assert_same_bits(&residual, &summed, &context);
            assert_same_bits(&fused, &found, &context);
        }
    }
}

#[test]
fn a_norm_row_does_not_depend_on_its_neighbours_or_the_threads() {
    let mut random = Random(11);
    let (rows, width) = (67, 515);
    let (x, weight) = (random.floats(rows * width), random.floats(width));
    for pool in pools(3) {
        let mut together = poison(x.len());
        rms_norm(&pool, &x, &weight, 1e-6, &mut together).unwrap();
        for (x, together) in x.chunks(width).zip(together.chunks(width)) {
            let mut alone = poison(width);
            rms_norm(&pool, x, &weight, 1e-6, &mut alone).unwrap();
            assert_same_bits(&alone, together, &format!("{:?}", pool.level()));
        }
    }
}

#[test]
fn the_gate_agrees_with_the_reference_also_far_out() {
    let mut random = Random(12);
    for pool in pools(2) {
        for (rows, width) in SIZES {
            let mut gate = random.floats(rows * width);
            gate.iter_mut().enumerate().for_each(|(i, g)| *g *= [1.0, 10.0, 100.0, 1e30][i % 4]);
            let up = random.floats(gate.len());
            let (mut found, mut wanted) = (poison(gate.len()), poison(gate.len()));
            silu_mul(&pool, &gate, &up, &mut found).unwrap();
            reference::silu_mul(&gate, &up, &mut wanted);
            for (i, (f, w)) in found.iter().zip(&wanted).enumerate() {
                // Below -88.3 the kernel gives zero for what is under 1e-35.
                assert!((f - w).abs() <= 1e-6 * w.abs().max(1e-29), "gate {} gives {f}, wanted {w}", gate[i]);
            }
        }
        let mut found = [0.0; 1];
        silu_mul(&pool, &[f32::NAN], &[1.0], &mut found).unwrap();
        assert!(found[0].is_nan());
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused_and_outputs_are_untouched() {
    let pool = Pool::new(2);
    let refused = |result: Result<(), KernelError>| assert!(matches!(result, Err(KernelError::Shape { .. })));
    let (mut out, mut residual) = ([7.0; 6], [5.0; 6]);
    refused(rms_norm(&pool, &[1.0; 6], &[1.0; 4], 0.0, &mut out));
    refused(rms_norm(&pool, &[1.0; 6], &[], 0.0, &mut out));
    refused(rms_norm(&pool, &[1.0; 4], &[1.0; 2], 0.0, &mut out));
    refused(add_rms_norm(&pool, &mut residual, &[1.0; 4], &[1.0; 2], 0.0, &mut out[..4]));
    refused(add_rms_norm(&pool, &mut residual, &[1.0; 6], &[1.0; 2], 0.0, &mut out[..4]));
    refused(add(&pool, &mut residual, &[1.0; 5]));
    refused(silu_mul(&pool, &[1.0; 6], &[1.0; 5], &mut out));
    refused(silu_mul(&pool, &[1.0; 5], &[1.0; 5], &mut out));
    assert_eq!((out, residual), ([7.0; 6], [5.0; 6]));
}
