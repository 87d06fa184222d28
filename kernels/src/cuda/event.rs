//! A moment in a stream: whether it has passed, waiting for it, and the time between two.

use cudarc::driver::sys;

use super::error::check;
use super::{CudaError, Gpu};

/// A moment in the stream of a device. Before its first record it has passed.
pub struct Event {
    gpu: Gpu,
    handle: sys::CUevent,
}

// SAFETY: events may be used from every thread.
unsafe impl Send for Event {}
// SAFETY: as above; the driver guards its own state.
unsafe impl Sync for Event {}

impl Event {
    /// An event of this device's stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the driver makes none.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current; one handle is written.
        check("make an event", unsafe { sys::cuEventCreate(&mut handle, 0) })?;
        Ok(Self { gpu: gpu.clone(), handle })
    }

    /// Moves the event to now: it passes when everything queued so far is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the driver refuses.
    pub fn record(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: event and stream belong to this context.
        check("record an event", unsafe { sys::cuEventRecord(self.handle, self.gpu.stream()) })
    }

    /// Whether it has passed.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when work before it failed.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        self.gpu.bind()?;
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.handle) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("ask for an event", result).map(|()| true),
        }
    }

    /// Waits until it has passed.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when work before it failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the event lives.
        check("wait for an event", unsafe { sys::cuEventSynchronize(self.handle) })
    }

    /// Milliseconds on the device between `earlier` and this event; both must have passed.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when one has not.
    pub fn ms_since(&self, earlier: &Event) -> Result<f32, CudaError> {
        self.gpu.bind()?;
        let mut ms = 0.0;
        // SAFETY: both events live; one number is written.
        check("time two events", unsafe { sys::cuEventElapsedTime_v2(&mut ms, earlier.handle, self.handle) })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: made by `new`, destroyed once; the driver keeps it until it has passed.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
