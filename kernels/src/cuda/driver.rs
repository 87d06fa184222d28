//! The driver of this machine: whether there is one, and which devices it offers.

use cudarc::driver::sys;
use std::sync::OnceLock;

use super::CudaError;
use super::error::{check, describe};

/// Oldest driver that loads what the 13.0 compiler made, and that cuBLAS 13 works with.
const OLDEST_DRIVER: i32 = 13_000;

/// One GPU, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The `N` of `cuda:N`.
    pub ordinal: usize,
    /// The product's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// All of its memory.
    pub total_bytes: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block may ask for.
    pub shared_bytes_per_block: usize,
}

/// The devices of this machine. Never panics.
///
/// # Errors
/// [`CudaError::Unavailable`] when there is no driver, no cuBLAS, or no device; [`CudaError::Driver`] when the driver
/// cannot say.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    start()?;
    let mut count = 0;
    // SAFETY: the driver is there and initialised; it writes one integer.
    check("count devices", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    if count == 0 {
        return Err(unavailable("the driver sees no device"));
    }
    (0..count).map(device).collect()
}

/// Opens and initialises the driver, once.
pub(super) fn start() -> Result<(), CudaError> {
    static STARTED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    STARTED.get_or_init(open).clone()
}

fn open() -> Result<(), CudaError> {
    // SAFETY: these calls only try to open libraries.
    let (driver, blas, blas_lt) = unsafe {
        (sys::is_culib_present(), cudarc::cublas::sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present())
    };
    for (is_found, name, what) in [
        (driver, "cuda", "NVIDIA's driver brings it"),
        (blas, "cublas", "the CUDA toolkit and the wheel nvidia-cublas bring it"),
        (blas_lt, "cublasLt", "the CUDA toolkit and the wheel nvidia-cublas bring it"),
    ] {
        if !is_found {
            return Err(unavailable(&format!("found none of {}; {what}", names(name))));
        }
    }
    // SAFETY: the library is there, as just seen.
    let result = unsafe { sys::cuInit(0) };
    match result {
        sys::CUresult::CUDA_SUCCESS => {}
        sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(unavailable("the driver sees no device")),
        other => return Err(unavailable(&format!("the driver does not start, {}", describe(other)))),
    }
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    check("read the driver's version", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        let reason = format!("the driver is made for CUDA {major}.{minor}, 13.0 (driver 580) or later is needed");
        return Err(unavailable(&reason));
    }
    Ok(())
}

/// The file names that a library is looked for by, in this order; the system's loader looks for each in the folders of
/// `LD_LIBRARY_PATH`, then in its own.
fn names(library: &str) -> String {
    let mut names = cudarc::get_lib_name_candidates(library);
    // The others are those of Windows.
    names.retain(|name| !name.contains("64"));
    names.join(", ")
}

fn unavailable(reason: &str) -> CudaError {
    CudaError::Unavailable { reason: reason.into() }
}

/// The driver's handle of a device.
pub(super) fn handle(ordinal: i32) -> Result<sys::CUdevice, CudaError> {
    let mut handle = 0;
    // SAFETY: the driver is initialised; it writes one integer.
    check("open a device", unsafe { sys::cuDeviceGet(&mut handle, ordinal) })?;
    Ok(handle)
}

fn device(ordinal: i32) -> Result<DeviceInfo, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let handle = handle(ordinal)?;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: `handle` is a device of this driver; one integer is written.
        check("read a device's properties", unsafe { sys::cuDeviceGetAttribute(&mut value, which, handle) })?;
        Ok::<u32, CudaError>(value.unsigned_abs())
    };
    let (mut name, mut total_bytes) = ([0u8; 128], 0);
    // SAFETY: the driver writes a terminated string of at most the given length, and one integer.
    unsafe {
        check("read a device's name", sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32 - 1, handle))?;
        check("read a device's memory", sys::cuDeviceTotalMem_v2(&mut total_bytes, handle))?;
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(DeviceInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        total_bytes,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
    })
}
