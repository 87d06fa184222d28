//! What can go wrong on a GPU: no driver, no device, no memory, a call that the driver refuses.

use cudarc::driver::sys;
use std::ffi::CStr;

use crate::KernelError;

/// Why something on the GPU did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// This machine cannot use NVIDIA GPUs at all.
    #[error("no NVIDIA GPU can be used: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// There is no device of this number.
    #[error("there is no device `cuda:{ordinal}`, this machine has {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The kernels do not run on this device.
    #[error("`{name}` has compute capability {}.{}, the kernels need 8.0 or later", capability.0, capability.1)]
    Capability {
        /// Name of the device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The device has not that much memory left.
    #[error("cannot allocate {bytes} bytes on the GPU, {free} are free")]
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
        /// How much was free.
        free: usize,
    },
    /// The driver refused a call, or reports that earlier work failed.
    #[error("{op}: the CUDA driver reports {code}")]
    Driver {
        /// The operation, or the kernel's name.
        op: &'static str,
        /// The driver's name and text of the error.
        code: String,
    },
    /// cuBLAS refused a call.
    #[error("{op}: cuBLAS reports {code}")]
    Blas {
        /// The operation.
        op: &'static str,
        /// The name of the status.
        code: String,
    },
    /// Shapes or indices do not fit.
    #[error(transparent)]
    Refused(#[from] KernelError),
}

/// Turns the driver's answer into a result.
pub(super) fn check(op: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    if result == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { Err(CudaError::Driver { op, code: describe(result) }) }
}

/// Name and text of an error.
pub(super) fn describe(result: sys::CUresult) -> String {
    let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
    // SAFETY: both calls write one pointer to a static string, or null for an error they do not know.
    unsafe {
        let _ = sys::cuGetErrorName(result, &mut name);
        let _ = sys::cuGetErrorString(result, &mut text);
        let read = |at: *const std::ffi::c_char| {
            if at.is_null() { "unknown error".into() } else { CStr::from_ptr(at).to_string_lossy() }
        };
        format!("{} ({})", read(name), read(text))
    }
}
