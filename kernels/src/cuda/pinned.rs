//! Memory of the host that the device copies from and to while the host goes on.

use cudarc::driver::sys;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::check;
use super::{CudaError, Element, Event, Gpu};
use crate::KernelError;

/// The memory, and the last copy that uses it.
pub(super) struct PinnedMemory {
    gpu: Gpu,
    address: *mut c_void,
    last_copy: Event,
    is_in_flight: AtomicBool,
}

// SAFETY: plain memory; who touches it holds the `Pinned` that owns it, and waits for copies first.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// A copy was queued, or recorded: whoever touches the memory waits for it.
    pub(super) fn in_flight(self: &Arc<Self>, gpu: &Gpu) -> Result<(), CudaError> {
        match gpu.captured() {
            Some(mut captured) => {
                captured.pinned.push(self.clone());
                Ok(())
            }
            None => self.mark(),
        }
    }

    /// All copies queued so far must be over before the memory is touched.
    pub(super) fn mark(&self) -> Result<(), CudaError> {
        self.is_in_flight.store(true, Ordering::Release);
        self.last_copy.record()
    }

    fn wait(&self) -> Result<(), CudaError> {
        if self.is_in_flight.load(Ordering::Acquire) {
            self.last_copy.wait()?;
            self.is_in_flight.store(false, Ordering::Release);
        }
        Ok(())
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.wait().is_ok() && self.gpu.bind().is_ok() {
            // SAFETY: allocated by `cuMemHostAlloc`, freed once, and no copy uses it any more.
            let _ = unsafe { sys::cuMemFreeHost(self.address) };
        }
    }
}

/// `len` numbers of host memory that copies need not wait for.
pub struct Pinned<T> {
    memory: Arc<PinnedMemory>,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Element> Pinned<T> {
    pub(super) fn new(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(KernelError::Alloc { bytes: usize::MAX })?.max(1);
        let last_copy = Event::new(gpu)?;
        let mut address = std::ptr::null_mut();
        gpu.bind()?;
        // SAFETY: the context is current; one address is written, and then that many bytes from it on.
        unsafe {
            check("allocate pinned memory", sys::cuMemHostAlloc(&mut address, bytes, 0))?;
            address.cast::<u8>().write_bytes(0, bytes);
        }
        let is_in_flight = AtomicBool::new(false);
        let memory = Arc::new(PinnedMemory { gpu: gpu.clone(), address, last_copy, is_in_flight });
        Ok(Self { memory, len, numbers: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Waits for copies to and from it, recorded ones included, then gives its elements.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when work queued before failed.
    pub fn read(&self) -> Result<&[T], CudaError> {
        self.memory.wait()?;
        // SAFETY: `len` elements, initialised, every pattern of bits is one; queued copies are over, and the next one
        // into it needs a mutable borrow, or the launch of a graph, whose caller is told to read first.
        Ok(unsafe { std::slice::from_raw_parts(self.address(), self.len) })
    }

    /// Waits for copies to and from it, recorded ones included, then gives its elements to write.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when work queued before failed.
    pub fn write(&mut self) -> Result<&mut [T], CudaError> {
        self.memory.wait()?;
        // SAFETY: as in `read`; the borrow is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address(), self.len) })
    }

    pub(super) fn address(&self) -> *mut T {
        self.memory.address.cast()
    }

    pub(super) fn memory(&self) -> &Arc<PinnedMemory> {
        &self.memory
    }
}
