//! `linear` in every format: right, independent of the batch, refusing what does not fit.

use crate::random::{Random, assert_same_bits, poison, pools};
use millgate_kernels::quant::{BLOCK, RUN};
use millgate_kernels::reference::{self, Matrix};
use millgate_kernels::{
    KernelError, Level, PackedMatrix, PackedPart, Pool, Product, WeightFormat, linear, linear_each,
};

/// Column counts that end in the middle of everything, as far as the format's blocks allow.
fn odd_cols(format: WeightFormat) -> Vec<usize> {
    match format.block_weights() {
        1 => vec![1, 2, 7, 64, 129, 515],
        32 => vec![32, 96, 256, 320],
        _ => vec![256, 768],
    }
}

/// Activations whose runs of 32 differ in size as much as they may, zeros among them.
fn uneven(random: &mut Random, len: usize) -> Vec<f32> {
    let mut x = random.floats(len);
    for run in x.chunks_mut(RUN) {
        let size = [1.0, 0.5f32.powi(random.below(24) as i32), 1e-36, 0.0][random.below(8).saturating_sub(4)];
        run.iter_mut().for_each(|v| *v *= size);
    }
    x
}

fn run(pool: &Pool, x: &[f32], w: &PackedMatrix, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = poison(x.len() / w.cols() * w.rows());
    linear(pool, x, w, bias, &mut y).unwrap();
    y
}

/// Fails unless outputs of bf16 weights agree but for the order of their sums: measured against the sums of what the
/// products are without signs, which a lonely output near zero is not. Products too small for a normal number may count as
/// zero, which is what dot products of bf16 pairs make of them.
fn assert_sums_close(found: &[f32], wanted: &[f32], x: &[f32], matrix: &Matrix, context: &str) {
    let x: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    let bytes: Vec<u8> = matrix.bytes.as_chunks().0.iter().flat_map(|&[low, high]| [low, high & 0x7f]).collect();
    let mut sizes = poison(found.len());
    reference::linear(Level::Scalar, &x, &Matrix { bytes: &bytes, ..*matrix }, None, &mut sizes);
    for (i, ((f, w), size)) in found.iter().zip(wanted).zip(sizes).enumerate() {
        let lost = matrix.cols as f32 * f32::MIN_POSITIVE;
        // Negated, so that NaN fails.
        assert!((f - w).abs() <= 5e-7 * size + lost, "{context}: element {i} is {f}, wanted {w} (of {size})");
    }
}

#[test]
fn linear_agrees_with_the_reference_in_every_format_and_size() {
    let mut random = Random(1);
    for pool in pools(2) {
        for format in WeightFormat::ALL {
            for cols in odd_cols(format) {
                for (m, rows) in [(1, 1), (1, 33), (2, 16), (3, 70), (5, 15), (7, 64), (9, 31), (13, 97), (35, 40)] {
                    let source = random.weights(format, rows, cols);
                    let x = uneven(&mut random, m * cols);
                    let bias = (m % 2 == 1).then(|| random.floats(rows));
                    let w = PackedMatrix::pack(format, rows, cols, &source).unwrap();
                    let found = run(&pool, &x, &w, bias.as_deref());
                    let mut wanted = poison(m * rows);
                    let matrix = Matrix { format, rows, cols, bytes: &source };
                    reference::linear(pool.level(), &x, &matrix, bias.as_deref(), &mut wanted);
                    let context = format!("{:?} {format:?} m {m} rows {rows} cols {cols}", pool.level());
                    if format == WeightFormat::Bf16 {
                        assert_sums_close(&found, &wanted, &x, &matrix, &context);
                    } else {
                        // One running sum an output in a fixed order: no room for differences.
                        assert!(found == wanted, "{context}: not the same numbers");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_up_to_33_rows() {
    let mut random = Random(2);
    for pool in pools(2) {
        for format in WeightFormat::ALL {
            // Long enough for dense panels to be summed in several pieces; the scalar kernels would take minutes.
            let cols = if pool.level() == Level::Scalar { 256 } else { 2560 };
            let rows = if format.is_quantised() { 83 } else { 70 };
            let w = PackedMatrix::pack(format, rows, cols, &random.weights(format, rows, cols)).unwrap();
            let x = uneven(&mut random, 33 * cols);
            let alone: Vec<f32> = x.chunks(cols).flat_map(|x| run(&pool, x, &w, None)).collect();
            for m in 2..=33 {
                // Another first row each time: a row must not depend on its place either.
                let first = random.below(33 - m + 1);
                let found = run(&pool, &x[first * cols..(first + m) * cols], &w, None);
                let context = format!("{:?} {format:?} rows {first}..{}", pool.level(), first + m);
                assert_same_bits(&found, &alone[first * rows..(first + m) * rows], &context);
            }
        }
    }
}

#[test]
fn bytes_of_a_block_miss_an_activation_by_no_more_than_a_127th_of_the_largest_in_its_run() {
    let mut random = Random(12);
    for _ in 0..200 {
        let x = uneven(&mut random, BLOCK);
        let block = reference::quantise_block(&x);
        let largest = |x: &[f32]| x.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
        for ((x, codes), shift) in x.chunks(RUN).zip(block.codes.chunks(RUN)).zip(block.shifts) {
            // Half a step, which is at most twice as long as with a scale of the run's own. Beyond 15 powers of two below
            // the block's peak, half a step of that.
            let bound = largest(x).max(block.scale * 127.0 / 65536.0) / 127.0;
            for (x, &code) in x.iter().zip(codes) {
                let found = f32::from(code) * block.scale / (1u32 << shift) as f32;
                assert!((found - x).abs() <= 1.001 * bound, "{x} became {found}, bound {bound}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bits() {
    let mut random = Random(3);
    for format in WeightFormat::ALL {
        let (m, rows, cols) = (17, 300, 1024);
        let w = PackedMatrix::pack(format, rows, cols, &random.weights(format, rows, cols)).unwrap();
        let x = random.floats(m * cols);
        let wanted = run(&Pool::new(1), &x, &w, None);
        for threads in 2..=3 {
            assert_same_bits(
                &run(&Pool::new(threads), &x, &w, None),
                &wanted,
                &format!("{format:?} {threads} threads"),
            );
        }
    }
}

#[test]
fn stacked_matrices_give_the_outputs_of_each_one_after_the_other() {
    let mut random = Random(4);
    let pool = Pool::new(2);
    for format in WeightFormat::ALL {
        let cols = 256;
        let sources = [5, 64, 17].map(|rows| (rows, random.weights(format, rows, cols)));
        let parts: Vec<PackedPart> = sources.iter().map(|(rows, source)| PackedPart { rows: *rows, source }).collect();
        let stacked = PackedMatrix::stack(format, cols, &parts).unwrap();
        let x = random.floats(cols);
        let wanted: Vec<f32> = parts
            .iter()
            .flat_map(|p| run(&pool, &x, &PackedMatrix::pack(format, p.rows, cols, p.source).unwrap(), None))
            .collect();
        assert_same_bits(&run(&pool, &x, &stacked, None), &wanted, &format!("{format:?}"));
    }
}

#[test]
fn several_matrices_of_one_input_give_what_each_gives_alone() {
    let mut random = Random(11);
    for pool in pools(2) {
        // Formats that share laid-out rows stand beside formats that do not.
        let formats = [WeightFormat::Q4K, WeightFormat::Q4K, WeightFormat::Q6K, WeightFormat::Bf16, WeightFormat::Q8_0];
        for m in [1, 5, 40] {
            let x = random.floats(m * 512);
            let weights: Vec<_> = (formats.into_iter().zip([40, 16, 1, 33, 70]))
                .map(|(format, rows)| {
                    PackedMatrix::pack(format, rows, 512, &random.weights(format, rows, 512)).unwrap()
                })
                .collect();
            let bias = random.floats(16);
            let biases = [None, Some(bias.as_slice()), None, None, None];
            let mut found: Vec<_> = weights.iter().map(|w| poison(m * w.rows())).collect();
            let mut products: Vec<_> = (weights.iter().zip(biases).zip(&mut found))
                .map(|((weight, bias), y)| Product { weight, bias, y })
                .collect();
            linear_each(&pool, &x, &mut products).unwrap();
            for ((w, bias), found) in weights.iter().zip(biases).zip(&found) {
                assert_same_bits(
                    found,
                    &run(&pool, &x, w, bias),
                    &format!("{:?} {:?} m {m}", pool.level(), w.format()),
                );
            }
        }
    }
}

#[test]
fn nothing_is_written_when_one_of_several_products_does_not_fit() {
    let pool = Pool::new(1);
    let pack = |rows| PackedMatrix::pack(WeightFormat::F32, rows, 4, &vec![0; rows * 16]).unwrap();
    let (good, bad) = (pack(3), pack(2));
    let (mut first, mut second) = (poison(3), poison(3));
    let products = &mut [
        Product { weight: &good, bias: None, y: &mut first },
        Product { weight: &bad, bias: None, y: &mut second },
    ];
    assert!(matches!(linear_each(&pool, &[1.0; 4], products), Err(KernelError::Shape { op: "linear", .. })));
    assert_same_bits(&first, &poison(3), "the first output");
}

#[test]
fn a_packed_row_reads_back_as_the_file_says() {
    let mut random = Random(5);
    for format in WeightFormat::ALL {
        for cols in odd_cols(format) {
            let rows = 37;
            let source = random.weights(format, rows, cols);
            let w = PackedMatrix::pack(format, rows, cols, &source).unwrap();
            for (index, row) in source.chunks_exact(source.len() / rows).enumerate() {
                let (mut found, mut wanted) = (poison(cols), poison(cols));
                w.row(index, &mut found).unwrap();
                millgate_kernels::quant::dequantise_row(format, row, &mut wanted).unwrap();
                assert_same_bits(&found, &wanted, &format!("{format:?} cols {cols} row {index}"));
            }
        }
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_wherever_they_lie() {
    let mut random = Random(7);
    for format in WeightFormat::ALL {
        let (rows, cols) = (37, 256);
        let sound = random.weights(format, rows, cols);
        let row_bytes = sound.len() / rows;
        // Where the first and the last row have a scale, or a weight: all bits set is no number in any format.
        let scale = if format == WeightFormat::Q6K { 208 } else { 0 };
        for row in [0, rows - 1] {
            let mut source = sound.clone();
            source[row * row_bytes + scale..][..format.block_bytes().min(4).min(row_bytes - scale)].fill(0xff);
            let wanted = millgate_kernels::quant::check(format, &source).unwrap_err();
            assert_eq!(PackedMatrix::pack(format, rows, cols, &source).unwrap_err(), wanted, "{format:?} row {row}");
        }
    }
}

#[test]
fn a_broken_activation_breaks_its_own_row_visibly_and_no_other() {
    let mut random = Random(6);
    for pool in pools(1) {
        for format in WeightFormat::ALL {
            let (rows, cols) = (40, 256);
            let w = PackedMatrix::pack(format, rows, cols, &random.weights(format, rows, cols)).unwrap();
            // Signed bytes have a scale, which has no room beyond this.
            let too_large = format.is_quantised().then_some(2e33);
            for bad in [f32::NAN, f32::INFINITY].into_iter().chain(too_large) {
                let mut x = random.floats(3 * cols);
                let clean = run(&pool, &x, &w, None);
                x[cols + 100] = bad;
                let found = run(&pool, &x, &w, None);
                let context = format!("{:?} {format:?} {bad}", pool.level());
                assert_same_bits(&found[..rows], &clean[..rows], &context);
                assert_same_bits(&found[2 * rows..], &clean[2 * rows..], &context);
                assert!(found[rows..2 * rows].iter().all(|v| !v.is_finite()), "{context}");
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused_and_the_output_is_untouched() {
    let pool = Pool::new(1);
    let w = PackedMatrix::pack(WeightFormat::F32, 3, 4, &[0; 48]).unwrap();
    for (x, bias, y) in [(5, None, 3), (4, None, 4), (8, None, 3), (4, Some(2), 3)] {
        let mut out = vec![7.0; y];
        let bias = bias.map(|len| vec![0.0; len]);
        let refused = linear(&pool, &vec![0.0; x], &w, bias.as_deref(), &mut out);
        assert!(matches!(refused, Err(KernelError::Shape { op: "linear", .. })), "{refused:?}");
        assert!(out.iter().all(|&v| v == 7.0));
    }
    assert!(linear(&pool, &[], &w, None, &mut []).is_ok());
}

#[test]
fn weights_that_are_no_matrix_are_refused() {
    for format in WeightFormat::ALL.into_iter().filter(|f| f.is_quantised()) {
        let cols = format.block_weights() + 1;
        assert!(matches!(PackedMatrix::pack(format, 1, cols, &[]), Err(KernelError::Format { .. })));
    }
    for format in WeightFormat::ALL {
        let short = vec![0; format.bytes_for(2, 256).unwrap() - 1];
        assert!(matches!(PackedMatrix::pack(format, 2, 256, &short), Err(KernelError::Shape { .. })));
        assert!(PackedMatrix::pack(format, usize::MAX / 2, 256, &short).is_err());
        assert!(PackedMatrix::pack(format, 1, usize::MAX / 256 * 256, &short).is_err());
    }
    let w = PackedMatrix::pack(WeightFormat::F32, 1, 1, &[0; 4]).unwrap();
    assert!(w.row(1, &mut [0.0]).is_err());
    assert!(w.row(0, &mut [0.0; 2]).is_err());
}
