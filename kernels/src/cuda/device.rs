//! One device with one stream: the context, the loaded kernels, and cuBLAS's handles.

use cudarc::driver::sys;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blas::{Blas, WORKSPACE_BYTES};
use super::buffer::{Allocation, Buffer};
use super::error::check;
use super::launch::{Function, Modules};
use super::pinned::{Pinned, PinnedMemory};
use super::{CudaError, DeviceInfo, Element, Fallback, driver};

/// A device and the stream that everything asked of it runs on, one after the other.
///
/// Clones are the same device and the same stream. Work is queued and errors of work that failed come back from a later
/// call that waits. Memory lives as long as anything that uses it, recorded graphs included.
#[derive(Clone)]
pub struct Gpu(pub(super) Arc<Inner>);

/// Memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not allocated by anyone.
    pub free_bytes: usize,
    /// All there is.
    pub total_bytes: usize,
}

impl DeviceMemory {
    /// Memory of device `cuda:ordinal`, on which nothing need be open.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn of(ordinal: usize) -> Result<Self, CudaError> {
        let count = driver::devices()?.len();
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        Context::open(ordinal)?.memory()
    }
}

pub(super) struct Inner {
    info: DeviceInfo,
    stream: sys::CUstream,
    modules: Modules,
    pub(super) functions: Mutex<HashMap<[&'static str; 3], Function>>,
    blas: Mutex<Option<Blas>>,
    is_capturing: AtomicBool,
    is_deterministic: AtomicBool,
    captured: Mutex<Captured>,
    context: Context,
}

/// What a recording uses, and what was given up while it went on.
#[derive(Default)]
pub(super) struct Captured {
    pub(super) memory: Vec<Arc<Allocation>>,
    pub(super) pinned: Vec<Arc<PinnedMemory>>,
    freed: Vec<sys::CUdeviceptr>,
}

// SAFETY: the driver's handles may be used from every thread; the current context is set before each call.
unsafe impl Send for Inner {}
// SAFETY: as above; what is mutable lies behind mutexes and atomics.
unsafe impl Sync for Inner {}

impl Gpu {
    /// Opens device `cuda:ordinal`, makes its stream and loads the kernels.
    ///
    /// # Errors
    /// [`CudaError::Unavailable`] without a driver, [`CudaError::NoDevice`], [`CudaError::Capability`] for a card older
    /// than compute capability 8.0, [`CudaError::Driver`] when the kernels do not load.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let devices = driver::devices()?;
        let count = devices.len();
        let info = devices.into_iter().nth(ordinal).ok_or(CudaError::NoDevice { ordinal, count })?;
        if info.capability < (8, 0) {
            return Err(CudaError::Capability { name: info.name, capability: info.capability });
        }
        let context = Context::open(ordinal)?;
        context.bind()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; one handle is written.
        check("make a stream", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        let gpu = Self(Arc::new(Inner {
            info,
            context,
            stream,
            modules: Modules::load()?,
            functions: Mutex::default(),
            blas: Mutex::new(None),
            is_capturing: AtomicBool::new(false),
            is_deterministic: AtomicBool::new(false),
            captured: Mutex::default(),
        }));
        *lock(&gpu.0.blas) = Some(Blas::new(&gpu)?);
        Ok(gpu)
    }

    /// What the driver says about the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// What opening a device takes of its memory: the workspace of cuBLAS.
    pub const OWN_BYTES: u64 = WORKSPACE_BYTES as u64;

    /// How much memory is free now.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the driver cannot say.
    pub fn memory(&self) -> Result<DeviceMemory, CudaError> {
        self.0.context.memory()
    }

    /// Waits until everything asked of this stream is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when some of it failed.
    pub fn synchronise(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream is this device's.
        check("wait for the GPU", unsafe { sys::cuStreamSynchronize(self.0.stream) })
    }

    /// Memory for `len` numbers, holding what was there before.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        Buffer::new(self, len)
    }

    /// Memory for `len` zeros.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn zeroed<T: Element>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(len)?;
        buffer.view_mut().fill_zero()?;
        Ok(buffer)
    }

    /// Memory that holds a copy of `values`.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(values.len())?;
        buffer.view_mut().write(values)?;
        Ok(buffer)
    }

    /// Memory of the host that copies to and from the device need not wait for; holds zeros.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the host has none.
    pub fn pinned<T: Element>(&self, len: usize) -> Result<Pinned<T>, CudaError> {
        Pinned::new(self, len)
    }

    /// From now on the products of a row do not depend on how many rows are multiplied with it, at some cost in speed.
    pub fn make_deterministic(&self) {
        self.0.is_deterministic.store(true, Ordering::Relaxed);
    }

    /// Sizes of products, met since this was asked last, that are computed another way than wanted; each is told once.
    pub fn take_fallbacks(&self) -> Vec<Fallback> {
        self.blas().as_mut().map(Blas::take_fallbacks).unwrap_or_default()
    }

    pub(super) fn is_deterministic(&self) -> bool {
        self.0.is_deterministic.load(Ordering::Relaxed)
    }

    /// Makes this device's context the current one of the calling thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.0.context.bind()
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.0.stream
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.0.modules
    }

    pub(super) fn blas(&self) -> MutexGuard<'_, Option<Blas>> {
        lock(&self.0.blas)
    }

    pub(super) fn set_capturing(&self, is_capturing: bool) {
        self.0.is_capturing.store(is_capturing, Ordering::Release);
    }

    /// What a recording uses so far; `None` when nothing is recorded.
    pub(super) fn captured(&self) -> Option<MutexGuard<'_, Captured>> {
        self.0.is_capturing.load(Ordering::Acquire).then(|| lock(&self.0.captured))
    }

    /// Ends a recording: what it used, and frees what was given up meanwhile.
    pub(super) fn take_captured(&self) -> Captured {
        self.set_capturing(false);
        let mut captured = std::mem::take(&mut *lock(&self.0.captured));
        for address in captured.freed.drain(..) {
            self.free(address);
        }
        captured
    }

    /// Gives memory back once all queued work that may use it is done.
    pub(super) fn free(&self, address: sys::CUdeviceptr) {
        if let Some(mut captured) = self.captured() {
            // Freeing waits for the device, which a recording does not allow.
            captured.freed.push(address);
            return;
        }
        if self.bind().is_ok() {
            // SAFETY: the address came from `cuMemAlloc` and is given back once; the driver waits for pending work.
            // A failure means that the device is lost, which the next call reports.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gpu").field(&self.0.info).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        *self.blas.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        // SAFETY: nobody holds this device any more, so nothing new is queued; queued work ends before the stream does.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.stream);
            let _ = sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

/// Nothing behind these mutexes is left half-changed by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device's primary context. It is opened once and kept for the life of the process: every thread that used it
/// remembers it as its current one.
#[derive(Clone, Copy)]
struct Context(sys::CUcontext);

/// Contexts opened so far, by ordinal; addresses, so that they can be shared.
static OPEN: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The context this thread made current last, so that it is not asked for again at every call.
    static CURRENT: Cell<sys::CUcontext> = const { Cell::new(std::ptr::null_mut()) };
}

impl Context {
    fn open(ordinal: usize) -> Result<Self, CudaError> {
        let mut open = lock(&OPEN);
        if let Some(&address) = open.get(&ordinal) {
            return Ok(Self(address as sys::CUcontext));
        }
        let device = driver::handle(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device exists; one handle is written.
        check("open the device's context", unsafe { sys::cuDevicePrimaryCtxRetain(&mut handle, device) })?;
        open.insert(ordinal, handle as usize);
        Ok(Self(handle))
    }

    fn memory(self) -> Result<DeviceMemory, CudaError> {
        self.bind()?;
        let (mut free_bytes, mut total_bytes) = (0, 0);
        // SAFETY: the context is current; two integers are written.
        check("read free memory", unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total_bytes) })?;
        Ok(DeviceMemory { free_bytes, total_bytes })
    }

    fn bind(self) -> Result<(), CudaError> {
        if CURRENT.get() != self.0 {
            // SAFETY: an open context is never closed.
            check("use the device's context", unsafe { sys::cuCtxSetCurrent(self.0) })?;
            CURRENT.set(self.0);
        }
        Ok(())
    }
}
