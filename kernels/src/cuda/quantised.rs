//! Products with quantised weights as they lie in a GGUF file, and turning them into plain ones.

use super::launch::{Args, Cut, aligned};
use super::{Activation, Buffer, CudaError, Gpu, View, ViewMut};
use crate::error::{expect_below, expect_len};
use crate::quant::RUN;
use crate::{KernelError, WeightFormat};

/// Most rows of activations that [`quantised_linear`] takes; with more, [`dequantise`] and a dense product are faster.
pub const MAX_QUANTISED_ROWS: usize = 8;
/// Outputs of one block: `WARPS` of `quant_matvec.cu`.
const OUTPUTS: usize = 4;
/// Weights that one thread dequantises.
const EACH: usize = 8;

/// A weight matrix `[outputs, inputs]` in blocks.
pub struct QuantisedMatrix {
    blocks: Buffer<u8>,
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
}

impl QuantisedMatrix {
    /// Copies the bytes of a file to the device.
    ///
    /// # Errors
    /// [`KernelError::Format`] for a format without blocks; [`KernelError::Shape`] when `bytes` are not exactly such a
    /// matrix; [`CudaError::OutOfMemory`].
    pub fn new(
        gpu: &Gpu,
        format: WeightFormat,
        (outputs, inputs): (usize, usize),
        bytes: &[u8],
    ) -> Result<Self, CudaError> {
        check_matrix(format, (outputs, inputs), bytes.len())?;
        Ok(Self { blocks: gpu.upload(bytes)?, format, outputs, inputs })
    }

    /// Its format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    pub fn inputs(&self) -> usize {
        self.inputs
    }
}

fn check_matrix(format: WeightFormat, (outputs, inputs): (usize, usize), bytes: usize) -> Result<(), KernelError> {
    const OP: &str = "quantised matrix";
    if !format.is_quantised() {
        return Err(KernelError::Format { format: format.name(), problem: "they have no blocks".into() });
    }
    let Some(wanted) = format.bytes_for(outputs, inputs) else {
        let wanted = inputs.next_multiple_of(format.block_weights());
        return Err(KernelError::Shape { op: OP, what: "inputs (whole blocks)", found: inputs, wanted });
    };
    expect_below(OP, "outputs", outputs, 1 << 30)?;
    expect_below(OP, "inputs", inputs, 1 << 28)?;
    expect_len(OP, "bytes", bytes, wanted)
}

/// Rows of activations as signed bytes with scales: room for [`MAX_QUANTISED_ROWS`] rows.
pub struct QuantisedRows {
    codes: Buffer<i8>,
    scales: Buffer<f32>,
    sums: Buffer<f32>,
    rows: usize,
    width: usize,
}

impl QuantisedRows {
    /// For rows of up to `max_width`.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu, max_width: usize) -> Result<Self, CudaError> {
        let len = MAX_QUANTISED_ROWS * max_width.next_multiple_of(RUN);
        let (codes, scales, sums) = (gpu.alloc(len)?, gpu.alloc(len / RUN)?, gpu.alloc(2 * len / RUN)?);
        Ok(Self { codes, scales, sums, rows: 0, width: 0 })
    }

    /// Quantises `rows` rows of `width`, the next `stride` elements on.
    ///
    /// # Errors
    /// [`KernelError::Shape`] or [`KernelError::Range`] when lengths do not fit; nothing is queued then.
    pub fn fill<T: Activation>(
        &mut self,
        gpu: &Gpu,
        x: View<'_, T>,
        (rows, width, stride): (usize, usize, usize),
    ) -> Result<(), CudaError> {
        check_rows(x.len(), self.codes.len(), rows, width, stride)?;
        (self.rows, self.width) = (rows, width);
        let runs = rows * width / RUN;
        let (codes, scales, sums) = (self.codes.view_mut(), self.scales.view_mut(), self.sums.view_mut());
        let args = Args::new().input(x).output(&codes).output(&scales).output(&sums);
        let args = args.int(runs).int(width / RUN).int(stride);
        // SAFETY: `check_rows` saw that every run lies within `x` and has its place.
        unsafe { gpu.launch(["quantise_rows", T::SUFFIX, ""], Cut::new(runs.div_ceil(8), 256), &args) }
    }
}

fn check_rows(x: usize, room: usize, rows: usize, width: usize, stride: usize) -> Result<(), KernelError> {
    const OP: &str = "quantise_rows";
    expect_below(OP, "rows", rows, MAX_QUANTISED_ROWS + 1)?;
    if width == 0 || !width.is_multiple_of(RUN) {
        let wanted = width.next_multiple_of(RUN).max(RUN);
        return Err(KernelError::Shape { op: OP, what: "width (a multiple)", found: width, wanted });
    }
    expect_below(OP, "width", rows * width, room + 1)?;
    expect_below(OP, "stride needed", width, stride + 1)?;
    expect_below(OP, "x length needed", rows.saturating_sub(1) * stride + width, x + 1)
}

/// `y = x · wᵀ` for up to [`MAX_QUANTISED_ROWS`] rows; products are exact sums of signed bytes, scaled in f32.
///
/// # Shapes
/// `y`: a row of `w.outputs()` every `y_stride` elements; the last may end after its outputs.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths do not fit; nothing is queued then.
pub fn quantised_linear<T: Activation>(
    gpu: &Gpu,
    x: &QuantisedRows,
    w: &QuantisedMatrix,
    y: ViewMut<'_, T>,
    y_stride: usize,
) -> Result<(), CudaError> {
    const OP: &str = "quantised_linear";
    expect_len(OP, "inputs", w.inputs, x.width)?;
    if x.rows == 0 {
        return Ok(());
    }
    expect_below(OP, "y_stride needed", w.outputs, y_stride + 1)?;
    expect_below(OP, "y length needed", (x.rows - 1) * y_stride + w.outputs, y.len() + 1)?;
    let args = Args::new().input(w.blocks.view()).input(x.codes.view()).input(x.scales.view()).input(x.sums.view());
    let args = args.output(&y).int(x.rows).int(w.inputs).int(w.outputs).int(y_stride);
    let cut = Cut::new(w.outputs.div_ceil(OUTPUTS), 32 * OUTPUTS);
    // SAFETY: the matrix holds its blocks, the activations are of the same width, and every output has its place.
    unsafe { gpu.launch([rows_name(x.rows), format_name(w.format), T::SUFFIX], cut, &args) }
}

/// Writes the weights as plain numbers, rounded to `T`.
///
/// # Shapes
/// `out`: `[w.outputs(), w.inputs()]`.
/// # Errors
/// [`KernelError::Shape`] when `out` has another length; nothing is queued then.
pub fn dequantise<T: Activation>(gpu: &Gpu, w: &QuantisedMatrix, out: ViewMut<'_, T>) -> Result<(), CudaError> {
    let weights = w.outputs * w.inputs;
    expect_len("dequantise", "out length", out.len(), weights)?;
    aligned("dequantise", &[out.view()])?;
    let args = Args::new().input(w.blocks.view()).output(&out).long(weights as u64);
    let cut = Cut::new((weights / EACH).div_ceil(256), 256);
    // SAFETY: the matrix holds as many weights as `out`, in whole blocks of a multiple of eight.
    unsafe { gpu.launch(["dequantise", format_name(w.format), T::SUFFIX], cut, &args) }
}

/// The kernel for this many rows, or a few more.
fn rows_name(rows: usize) -> &'static str {
    match rows {
        1 => "quant_matvec_1",
        2 => "quant_matvec_2",
        3..=4 => "quant_matvec_4",
        _ => "quant_matvec_8",
    }
}

fn format_name(format: WeightFormat) -> &'static str {
    format.name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_that_are_no_whole_blocks_are_refused() {
        assert_eq!(check_matrix(WeightFormat::Q4K, (3, 512), 3 * 2 * 144), Ok(()));
        let text = |format, shape, bytes| check_matrix(format, shape, bytes).unwrap_err().to_string();
        assert_eq!(
            text(WeightFormat::Q4K, (3, 511), 864),
            "quantised matrix: inputs (whole blocks) is 511, wanted 512"
        );
        assert_eq!(text(WeightFormat::Q8_0, (1, 32), 33), "quantised matrix: bytes is 33, wanted 34");
        assert_eq!(text(WeightFormat::Bf16, (1, 32), 64), "bf16 weights: they have no blocks");
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        assert_eq!(check_rows(3 * 100, 8 * 64, 3, 64, 100), Ok(()));
        assert_eq!(check_rows(264, 8 * 64, 3, 64, 100), Ok(()));
        assert!(check_rows(263, 8 * 64, 3, 64, 100).is_err());
        assert!(check_rows(900, 8 * 64, 9, 64, 100).is_err());
        assert!(check_rows(300, 8 * 64, 3, 40, 100).is_err());
        assert!(check_rows(300, 8 * 64, 3, 64, 63).is_err());
        assert!(check_rows(3000, 64, 3, 64, 100).is_err());
    }
}
