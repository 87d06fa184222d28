//! A recorded step: many launches and copies that start with one call.

use cudarc::driver::sys;

use super::device::Captured;
use super::error::check;
use super::{CudaError, Gpu};

/// Launches and copies recorded once, in order, with the memory they use.
///
/// What changes from step to step is read from buffers; addresses and shapes are as they were recorded.
pub struct Graph {
    gpu: Gpu,
    handle: sys::CUgraphExec,
    uses: Captured,
}

// SAFETY: a graph may be launched from every thread, one at a time; `launch` takes it mutably.
unsafe impl Send for Graph {}

impl Gpu {
    /// Records what `step` queues, without doing it. Nothing in it may wait for the device or allocate.
    ///
    /// Run the step once before: libraries prepare themselves on their first call.
    /// # Errors
    /// What `step` returns, or [`CudaError::Driver`] when it did something that cannot be recorded.
    pub fn capture(&self, step: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's and records nothing yet; the driver refuses otherwise.
        check("record a graph", unsafe { sys::cuStreamBeginCapture_v2(self.stream(), mode) })?;
        self.set_capturing(true);
        let mut recording = Recording { gpu: self, is_over: false };
        let done = step();
        let graph = recording.end();
        let uses = self.take_captured();
        done?;
        let graph = graph?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `graph` came from the recording just ended and is destroyed once; the executable does not need it.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut handle, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            made
        };
        check("prepare a graph", made)?;
        Ok(Graph { gpu: self.clone(), handle, uses })
    }
}

/// Ends the recording also when the step panics, so that the stream can be used again.
struct Recording<'a> {
    gpu: &'a Gpu,
    is_over: bool,
}

impl Recording<'_> {
    fn end(&mut self) -> Result<sys::CUgraph, CudaError> {
        self.is_over = true;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream records since `capture` began; one handle is written.
        check("end a graph", unsafe { sys::cuStreamEndCapture(self.gpu.stream(), &mut graph) })?;
        Ok(graph)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            if let Ok(graph) = self.end() {
                // SAFETY: just made, not used by anyone.
                let _ = unsafe { sys::cuGraphDestroy(graph) };
            }
            self.gpu.take_captured();
        }
    }
}

impl Graph {
    /// Queues everything recorded. Pinned memory it copies into must have been read before.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the driver refuses.
    pub fn launch(&mut self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the graph lives, and so does all the memory it uses.
        check("launch a graph", unsafe { sys::cuGraphLaunch(self.handle, self.gpu.stream()) })?;
        self.uses.pinned.iter().try_for_each(|pinned| pinned.mark())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: made by `capture`, destroyed once. Launches that are queued are waited for: the memory they use
            // may go away with this value.
            unsafe {
                let _ = sys::cuStreamSynchronize(self.gpu.stream());
                let _ = sys::cuGraphExecDestroy(self.handle);
            }
        }
    }
}
