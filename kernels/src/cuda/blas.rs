//! cuBLASLt for matrix products, with an algorithm chosen once a shape, and cuBLAS where that finds none.

use cudarc::cublas::sys as blas;
use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys;
use std::collections::{BTreeSet, HashMap};
use std::ffi::c_void;
use std::fmt;

use super::blas_lt::{Algorithm, Layouts, Limits, check_lt};
use super::error::check as check_driver;
use super::{CudaError, Gpu, MatMul};

/// What cuBLAS recommends for the newest cards; fixed, so that recorded graphs keep their workspace.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// In deterministic mode every product uses the algorithm for this many rows, which adds over the inputs in one go: a
/// row's sums then do not depend on how many others there are.
const DETERMINISTIC_ROWS: usize = 128;
/// Numbers of rows that such an algorithm must be able to do: as many as a step may have.
const DETERMINISTIC_CHECKS: [usize; 10] = [1, 2, 3, 4, 7, 16, 33, DETERMINISTIC_ROWS, 1000, 4096];
/// And what it may rely on matrices to start at a multiple of, in bytes: where a row lies must not matter either.
const DETERMINISTIC_ALIGNMENT: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Types {
    /// Of `x` and `w`, in cuBLAS's numbers.
    pub(super) x: u32,
    /// Of `y`.
    pub(super) y: u32,
}

#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) x: *const c_void,
    pub(super) w: *const c_void,
    pub(super) y: *mut c_void,
}

/// cuBLAS's handles of a device, its workspace, and the algorithms found so far.
pub(super) struct Blas {
    lt: lt::cublasLtHandle_t,
    plain: blas::cublasHandle_t,
    workspace: sys::CUdeviceptr,
    algorithms: HashMap<(MatMul, Types, Limits), Option<Algorithm>>,
    /// Sizes without an algorithm so far, and those of them that nobody was told of yet.
    known_fallbacks: BTreeSet<Fallback>,
    new_fallbacks: Vec<Fallback>,
}

/// Sizes of products that cuBLASLt has no algorithm for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fallback {
    /// Width of a row.
    pub inputs: usize,
    /// Width of a row of the product.
    pub outputs: usize,
    /// Whether none of those that are there gives a row the same bits among any others.
    pub is_deterministic: bool,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, outputs, is_deterministic } = self;
        write!(f, "cuBLASLt has no algorithm for products of {inputs} inputs and {outputs} outputs: ")?;
        f.write_str(match is_deterministic {
            true => "each row is multiplied alone to keep its bits, which is slow",
            false => "cuBLAS computes them, perhaps slower and not to the same bits in every step",
        })
    }
}

impl Blas {
    /// Handles for this device, whose context is current.
    pub(super) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let mut new = Self {
            lt: std::ptr::null_mut(),
            plain: std::ptr::null_mut(),
            workspace: 0,
            algorithms: HashMap::new(),
            known_fallbacks: BTreeSet::new(),
            new_fallbacks: Vec::new(),
        };
        // SAFETY: the context is current and the libraries are there; each call writes one handle. The workspace is
        // freed after the handles that use it.
        unsafe {
            let allocated = sys::cuMemAlloc_v2(&mut new.workspace, WORKSPACE_BYTES);
            if allocated == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                let free = gpu.memory().map_or(0, |memory| memory.free_bytes);
                return Err(CudaError::OutOfMemory { bytes: WORKSPACE_BYTES, free });
            }
            check_driver("allocate cuBLAS's workspace", allocated)?;
            check_lt("open cuBLASLt", lt::cublasLtCreate(&mut new.lt))?;
            check_blas("open cuBLAS", blas::cublasCreate_v2(&mut new.plain))?;
            check_blas("give cuBLAS its stream", blas::cublasSetStream_v2(new.plain, gpu.stream().cast()))?;
            let workspace = blas::cublasSetWorkspace_v2(new.plain, new.workspace as _, WORKSPACE_BYTES);
            check_blas("give cuBLAS its workspace", workspace)?;
        }
        Ok(new)
    }

    /// Queues a product that has rows and outputs.
    ///
    /// # Safety
    /// The matrices of `shape` lie within living memory at `places`.
    pub(super) unsafe fn multiply(
        &mut self,
        gpu: &Gpu,
        shape: MatMul,
        types: Types,
        places: Places,
    ) -> Result<(), CudaError> {
        let limits = Limits::of(gpu.is_deterministic(), &places);
        let rows = if limits.is_deterministic { DETERMINISTIC_ROWS } else { bucket(shape.rows) };
        let key = (MatMul { rows, ..shape }, types, limits);
        let algorithm = match self.algorithms.get(&key) {
            Some(&known) => known,
            None => {
                let found = self.choose(key.0, types, limits)?;
                self.algorithms.insert(key, found);
                found
            }
        };
        if let Some(algorithm) = algorithm {
            let layouts = Layouts::new(shape, types)?;
            let queue = (self.workspace, gpu.stream());
            // SAFETY: the caller's promise; all that uses the workspace runs on this stream, in order.
            if unsafe { layouts.multiply(self.lt, &algorithm, places, queue) }? {
                return Ok(());
            }
        }
        let MatMul { inputs, outputs, .. } = shape;
        let fallback = Fallback { inputs, outputs, is_deterministic: limits.is_deterministic };
        if self.known_fallbacks.insert(fallback) {
            self.new_fallbacks.push(fallback);
        }
        // cuBLAS picks by the number of rows: one at a time it picks the same for all.
        let rows_at_once = if limits.is_deterministic { 1 } else { shape.rows };
        (0..shape.rows).step_by(rows_at_once).try_for_each(|row| {
            // SAFETY: these rows are some of those that the caller promises.
            unsafe {
                self.multiply_plainly(MatMul { rows: rows_at_once, ..shape }, types, places.at_row(row, &shape, types))
            }
        })
    }

    /// The best algorithm that can do all numbers of rows that it will be used for. It depends on the sizes alone.
    fn choose(&self, shape: MatMul, types: Types, limits: Limits) -> Result<Option<Algorithm>, CudaError> {
        let ends = [fewest_of_bucket(shape.rows), shape.rows];
        let checks: &[usize] = if limits.is_deterministic { &DETERMINISTIC_CHECKS } else { &ends };
        let checks: Vec<Layouts> =
            checks.iter().map(|&rows| Layouts::new(MatMul { rows, ..shape }, types)).collect::<Result<_, _>>()?;
        let candidates = Layouts::new(shape, types)?.candidates(self.lt, limits)?;
        Ok(candidates.into_iter().find(|candidate| checks.iter().all(|rows| rows.allow(self.lt, candidate))))
    }

    /// Products without an algorithm that came up since this was asked last; each is told once.
    pub(super) fn take_fallbacks(&mut self) -> Vec<Fallback> {
        std::mem::take(&mut self.new_fallbacks)
    }

    /// # Safety
    /// As [`Blas::multiply`].
    unsafe fn multiply_plainly(&self, shape: MatMul, types: Types, places: Places) -> Result<(), CudaError> {
        use blas::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        let [rows, inputs, outputs, x_stride, y_stride] =
            [shape.rows, shape.inputs, shape.outputs, shape.x_stride, shape.y_stride].map(|size| size as i32);
        let (one, zero) = (1.0f32, 0.0f32);
        let (alpha, beta) = ((&raw const one).cast(), (&raw const zero).cast());
        let (x_type, y_type) = (blas_type(types.x), blas_type(types.y));
        // SAFETY: column-major, `y` is outputs × rows, `w` is inputs × outputs and transposed, `x` is inputs × rows:
        // what the caller promises to be there.
        let done = unsafe {
            #[rustfmt::skip]
            let done = blas::cublasGemmEx(
                self.plain, CUBLAS_OP_T, CUBLAS_OP_N, outputs, rows, inputs,
                alpha, places.w, x_type, inputs, places.x, x_type, x_stride,
                beta, places.y, y_type, y_stride,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F, blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            );
            done
        };
        check_blas("matmul", done)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `new`, the context is current, and each is given back once; the device waits for queued work.
        unsafe {
            if !self.plain.is_null() {
                let _ = blas::cublasDestroy_v2(self.plain);
            }
            if !self.lt.is_null() {
                let _ = lt::cublasLtDestroy(self.lt);
            }
            if self.workspace != 0 {
                let _ = sys::cuMemFree_v2(self.workspace);
            }
        }
    }
}

/// Products whose rows fall into one bucket share an algorithm, so that a step's size changes few results and few
/// algorithms are kept.
fn bucket(rows: usize) -> usize {
    if rows <= 256 { rows.next_power_of_two() } else { rows.next_multiple_of(256) }
}

/// The least number of rows in the bucket that ends with `rows`.
fn fewest_of_bucket(rows: usize) -> usize {
    if rows <= 256 { rows / 2 + 1 } else { rows - 255 }
}

impl Places {
    /// From this row of `x` and `y` on.
    fn at_row(self, row: usize, shape: &MatMul, types: Types) -> Self {
        let x = self.x.wrapping_byte_add(row * shape.x_stride * width(types.x));
        let y = self.y.wrapping_byte_add(row * shape.y_stride * width(types.y));
        Self { x, y, ..self }
    }
}

/// Bytes of a number.
fn width(which: u32) -> usize {
    if blas_type(which) == blas::cudaDataType_t::CUDA_R_32F { 4 } else { 2 }
}

impl Limits {
    fn of(is_deterministic: bool, places: &Places) -> Self {
        let most = if is_deterministic { DETERMINISTIC_ALIGNMENT } else { u32::MAX };
        Self { is_deterministic, alignment: alignment(places).min(most) }
    }
}

/// The largest power of two up to 256 that all three matrices start at a multiple of.
fn alignment(places: &Places) -> u32 {
    let together = places.x as usize | places.w as usize | places.y as usize;
    1 << together.trailing_zeros().min(8)
}

fn blas_type(which: u32) -> blas::cudaDataType_t {
    use blas::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
    [CUDA_R_16BF, CUDA_R_16F].into_iter().find(|&known| known as u32 == which).unwrap_or(CUDA_R_32F)
}

fn check_blas(op: &'static str, status: blas::cublasStatus_t) -> Result<(), CudaError> {
    let is_good = status == blas::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
    if is_good { Ok(()) } else { Err(CudaError::Blas { op, code: format!("{status:?}") }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_buckets_hold_all_rows() {
        assert_eq!([1, 2, 3, 33, 256, 257, 8192].map(bucket), [1, 2, 4, 64, 256, 512, 8192]);
        for rows in 1..2000 {
            let last = bucket(rows);
            let first = fewest_of_bucket(last);
            assert!(
                (first..=last).contains(&rows) && bucket(first) == last && (first == 1 || bucket(first - 1) < last)
            );
        }
    }
}
