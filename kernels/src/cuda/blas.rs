//! cuBLASLt for matrix products, with an algorithm chosen once a shape, and cuBLAS where that finds none.

use cudarc::cublas::sys as blas;
use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;

use super::error::check as check_driver;
use super::{CudaError, Gpu, MatMul};

/// What cuBLAS recommends for the newest cards; fixed, so that recorded graphs keep their workspace.
const WORKSPACE_BYTES: usize = 32 << 20;

/// In deterministic mode every product uses the algorithm for this many rows, which adds over the inputs in one go: a
/// row's sums then do not depend on how many others there are.
const DETERMINISTIC_ROWS: usize = 128;
/// cuBLASLt's mask of ways to add up parts of a sum: none, and all.
const NO_SPLIT: u32 = 0;
const EVERY_REDUCTION: u32 = 7;

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
    algorithms: HashMap<(MatMul, Types, Limits), Option<lt::cublasLtMatmulAlgo_t>>,
}

impl Blas {
    /// Handles for this device, whose context is current.
    pub(super) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let mut new =
            Self { lt: std::ptr::null_mut(), plain: std::ptr::null_mut(), workspace: 0, algorithms: HashMap::new() };
        // SAFETY: the context is current and the libraries are there; each call writes one handle. The workspace is
        // freed after the handles that use it.
        unsafe {
            check_driver("allocate cuBLAS's workspace", sys::cuMemAlloc_v2(&mut new.workspace, WORKSPACE_BYTES))?;
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
        let layouts = Layouts::new(shape, types)?;
        let limits = Limits { is_deterministic: gpu.is_deterministic(), alignment: alignment(&places) };
        let rows = if limits.is_deterministic { DETERMINISTIC_ROWS } else { bucket(shape.rows) };
        let key = (MatMul { rows, ..shape }, types, limits);
        let algorithm = match self.algorithms.get(&key) {
            Some(&known) => known,
            None => {
                let found = Layouts::new(key.0, types)?.choose(self.lt, limits)?;
                self.algorithms.insert(key, found);
                found
            }
        };
        if let Some(algorithm) = algorithm {
            // SAFETY: the caller's promise.
            let done = unsafe { layouts.multiply(self, &algorithm, places, gpu) };
            if done != lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
                && done != lt::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE
            {
                return check_lt("matmul", done);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.multiply_plainly(shape, types, places) }
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

/// The largest power of two up to 256 that all three matrices start at a multiple of.
fn alignment(places: &Places) -> u32 {
    let together = places.x as usize | places.w as usize | places.y as usize;
    1 << together.trailing_zeros().min(8)
}

/// What an algorithm must be able to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Limits {
    is_deterministic: bool,
    /// Bytes.
    alignment: u32,
}

/// What cuBLASLt is told when it is asked for an algorithm.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CudaError> {
        let mut new = Self(std::ptr::null_mut());
        // SAFETY: one handle is written.
        check_lt("ask for an algorithm", unsafe { lt::cublasLtMatmulPreferenceCreate(&mut new.0) })?;
        Ok(new)
    }

    fn set<V: Copy>(&mut self, attribute: lt::cublasLtMatmulPreferenceAttributes_t, value: V) -> Result<(), CudaError> {
        // SAFETY: the value is copied before the call returns, and its size goes with it.
        let set = unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, (&raw const value).cast(), size_of::<V>())
        };
        check_lt("ask for an algorithm", set)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by `new`, destroyed once.
            let _ = unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
        }
    }
}

/// cuBLASLt's description of a product.
struct Layouts {
    desc: lt::cublasLtMatmulDesc_t,
    w: lt::cublasLtMatrixLayout_t,
    x: lt::cublasLtMatrixLayout_t,
    y: lt::cublasLtMatrixLayout_t,
}

impl Layouts {
    fn new(shape: MatMul, types: Types) -> Result<Self, CudaError> {
        let null = std::ptr::null_mut();
        let mut new = Self { desc: null as _, w: null as _, x: null as _, y: null as _ };
        let transposed = blas::cublasOperation_t::CUBLAS_OP_T as i32;
        let (rows, inputs, outputs) = (shape.rows as u64, shape.inputs as u64, shape.outputs as u64);
        let (x_stride, y_stride) = (shape.x_stride.max(shape.inputs), shape.y_stride.max(shape.outputs));
        let (x_type, y_type) = (lt_type(types.x), lt_type(types.y));
        // SAFETY: each call writes one handle or copies one enumeration value of the given size.
        unsafe {
            let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
            let created = lt::cublasLtMatmulDescCreate(&mut new.desc, compute, lt::cudaDataType_t::CUDA_R_32F);
            check_lt("describe a product", created)?;
            let set = lt::cublasLtMatmulDescSetAttribute(
                new.desc,
                lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            );
            check_lt("describe a product", set)?;
            let create = lt::cublasLtMatrixLayoutCreate;
            check_lt("describe w", create(&mut new.w, x_type, inputs, outputs, inputs as i64))?;
            check_lt("describe x", create(&mut new.x, x_type, inputs, rows, x_stride as i64))?;
            check_lt("describe y", create(&mut new.y, y_type, outputs, rows, y_stride as i64))?;
        }
        Ok(new)
    }

    /// The algorithm cuBLASLt recommends, if it knows one.
    fn choose(
        &self,
        handle: lt::cublasLtHandle_t,
        limits: Limits,
    ) -> Result<Option<lt::cublasLtMatmulAlgo_t>, CudaError> {
        use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let reductions = if limits.is_deterministic { NO_SPLIT } else { EVERY_REDUCTION };
        let mut preference = Preference::new()?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions)?;
        for matrix in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(matrix, limits.alignment)?;
        }
        let mut found = std::mem::MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut count = 0;
        // SAFETY: all descriptions live; at most one result is written, and read only when it was.
        unsafe {
            #[rustfmt::skip]
            let asked = lt::cublasLtMatmulAlgoGetHeuristic(
                handle, self.desc, self.w, self.x, self.y, self.y, preference.0, 1, found.as_mut_ptr(), &mut count,
            );
            let is_known = asked == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS && count > 0;
            Ok(is_known.then(|| found.assume_init().algo))
        }
    }

    /// # Safety
    /// As [`Blas::multiply`].
    unsafe fn multiply(
        &self,
        blas: &Blas,
        algorithm: &lt::cublasLtMatmulAlgo_t,
        places: Places,
        gpu: &Gpu,
    ) -> lt::cublasStatus_t {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the caller's promise; scalars are read before the call returns.
        unsafe {
            #[rustfmt::skip]
            let done = lt::cublasLtMatmul(
                blas.lt, self.desc, (&raw const one).cast(), places.w, self.w, places.x, self.x,
                (&raw const zero).cast(), places.y, self.y, places.y, self.y,
                algorithm, blas.workspace as _, WORKSPACE_BYTES, gpu.stream().cast(),
            );
            done
        }
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        // SAFETY: made by `new` or null, destroyed once.
        unsafe {
            for layout in [self.w, self.x, self.y] {
                if !layout.is_null() {
                    let _ = lt::cublasLtMatrixLayoutDestroy(layout);
                }
            }
            if !self.desc.is_null() {
                let _ = lt::cublasLtMatmulDescDestroy(self.desc);
            }
        }
    }
}

fn blas_type(which: u32) -> blas::cudaDataType_t {
    use blas::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
    [CUDA_R_16BF, CUDA_R_16F].into_iter().find(|&known| known as u32 == which).unwrap_or(CUDA_R_32F)
}

fn lt_type(which: u32) -> lt::cudaDataType_t {
    use lt::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
    [CUDA_R_16BF, CUDA_R_16F].into_iter().find(|&known| known as u32 == which).unwrap_or(CUDA_R_32F)
}

fn check_lt(op: &'static str, status: lt::cublasStatus_t) -> Result<(), CudaError> {
    let is_good = status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
    if is_good { Ok(()) } else { Err(CudaError::Blas { op, code: format!("{status:?}") }) }
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
    }
}
