//! What cuBLASLt is told of a product, and what it answers: algorithms, whether one fits, and the product itself.

use cudarc::cublas::sys as blas;
use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys;
use std::mem::MaybeUninit;

use super::blas::{Places, Types, WORKSPACE_BYTES};
use super::{CudaError, MatMul};

/// Algorithms looked at before a product counts as one that none is made for.
const CANDIDATES: usize = 8;
/// cuBLASLt's mask of ways to add up parts of a sum: none, and all.
const NO_SPLIT: u32 = 0;
const EVERY_REDUCTION: u32 = 7;

pub(super) type Algorithm = lt::cublasLtMatmulAlgo_t;

/// What an algorithm must be able to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Limits {
    /// A row's sums do not depend on how many rows there are.
    pub(super) is_deterministic: bool,
    /// What all matrices start at a multiple of, in bytes.
    pub(super) alignment: u32,
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
pub(super) struct Layouts {
    desc: lt::cublasLtMatmulDesc_t,
    w: lt::cublasLtMatrixLayout_t,
    x: lt::cublasLtMatrixLayout_t,
    y: lt::cublasLtMatrixLayout_t,
}

impl Layouts {
    pub(super) fn new(shape: MatMul, types: Types) -> Result<Self, CudaError> {
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

    /// The algorithms that cuBLASLt recommends, best first.
    pub(super) fn candidates(&self, handle: lt::cublasLtHandle_t, limits: Limits) -> Result<Vec<Algorithm>, CudaError> {
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
        let mut found = [MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::zeroed(); CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptions live; at most as many results are written as there is room for.
        let asked = unsafe {
            #[rustfmt::skip]
            let asked = lt::cublasLtMatmulAlgoGetHeuristic(
                handle, self.desc, self.w, self.x, self.y, self.y, preference.0, CANDIDATES as i32,
                found.as_mut_ptr().cast(), &mut count,
            );
            asked
        };
        if asked != lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Ok(Vec::new());
        }
        let written = &found[..usize::try_from(count).unwrap_or(0).min(CANDIDATES)];
        // SAFETY: that many were written. One that failed keeps the zeros it began with, which no check lets through.
        Ok(written.iter().map(|result| unsafe { result.assume_init() }.algo).collect())
    }

    /// Whether cuBLASLt can compute this product by this algorithm, within the workspace.
    pub(super) fn allow(&self, handle: lt::cublasLtHandle_t, algorithm: &Algorithm) -> bool {
        let mut result = MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptions live; one result is written, and read only when it was.
        unsafe {
            #[rustfmt::skip]
            let checked = lt::cublasLtMatmulAlgoCheck(
                handle, self.desc, self.w, self.x, self.y, self.y, algorithm, result.as_mut_ptr(),
            );
            let good = lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
            checked == good && result.assume_init().workspaceSize <= WORKSPACE_BYTES
        }
    }

    /// Queues the product; `false` when cuBLASLt does not compute it by this algorithm.
    ///
    /// # Safety
    /// The matrices lie within living memory at `places`, and `workspace` is free for this stream.
    pub(super) unsafe fn multiply(
        &self,
        handle: lt::cublasLtHandle_t,
        algorithm: &Algorithm,
        places: Places,
        (workspace, stream): (sys::CUdeviceptr, sys::CUstream),
    ) -> Result<bool, CudaError> {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the caller's promise; scalars are read before the call returns.
        let done = unsafe {
            #[rustfmt::skip]
            let done = lt::cublasLtMatmul(
                handle, self.desc, (&raw const one).cast(), places.w, self.w, places.x, self.x,
                (&raw const zero).cast(), places.y, self.y, places.y, self.y,
                algorithm, workspace as _, WORKSPACE_BYTES, stream.cast(),
            );
            done
        };
        match done {
            lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | lt::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE => {
                Ok(false)
            }
            done => check_lt("matmul", done).map(|()| true),
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

fn lt_type(which: u32) -> lt::cudaDataType_t {
    use lt::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
    [CUDA_R_16BF, CUDA_R_16F].into_iter().find(|&known| known as u32 == which).unwrap_or(CUDA_R_32F)
}

pub(super) fn check_lt(op: &'static str, status: lt::cublasStatus_t) -> Result<(), CudaError> {
    let is_good = status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
    if is_good { Ok(()) } else { Err(CudaError::Blas { op, code: format!("{status:?}") }) }
}
