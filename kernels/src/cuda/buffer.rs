//! Memory of the device: buffers, and views of parts of them.

use cudarc::driver::sys;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::error::check;
use super::{CudaError, Element, Gpu, Pinned};
use crate::KernelError;
use crate::error::expect_len;

/// A piece of device memory, freed with its last user.
pub(super) struct Allocation {
    gpu: Gpu,
    address: sys::CUdeviceptr,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.gpu.free(self.address);
    }
}

/// `len` numbers in device memory. Its address is a multiple of 256 bytes.
pub struct Buffer<T> {
    memory: Arc<Allocation>,
    len: usize,
    numbers: PhantomData<T>,
}

/// A part of a buffer that an operation reads.
pub struct View<'a, T> {
    memory: &'a Arc<Allocation>,
    start: usize,
    len: usize,
    numbers: PhantomData<&'a T>,
}

/// A part of a buffer that an operation writes.
pub struct ViewMut<'a, T> {
    memory: &'a Arc<Allocation>,
    start: usize,
    len: usize,
    numbers: PhantomData<&'a mut T>,
}

impl<T: Element> Buffer<T> {
    pub(super) fn new(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        gpu.bind()?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or(KernelError::Alloc { bytes: usize::MAX })?;
        let mut address = 0;
        // SAFETY: the context is current; one address is written. A buffer of nothing still has an address.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(CudaError::OutOfMemory { bytes, free: gpu.memory().map_or(0, |memory| memory.free_bytes) })
            }
            result => {
                check("allocate device memory", result)?;
                let memory = Arc::new(Allocation { gpu: gpu.clone(), address });
                Ok(Self { memory, len, numbers: PhantomData })
            }
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device it lies on.
    pub fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    /// All of it, to be read.
    pub fn view(&self) -> View<'_, T> {
        View { memory: &self.memory, start: 0, len: self.len, numbers: PhantomData }
    }

    /// All of it, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { memory: &self.memory, start: 0, len: self.len, numbers: PhantomData }
    }

    /// A part of it, to be read. Panics when out of range, as slices do.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        self.view().slice(range)
    }

    /// A part of it, to be written. Panics when out of range, as slices do.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> ViewMut<'_, T> {
        self.view_mut().into_slice(range)
    }

    /// Waits for queued work, then copies everything to the host.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when earlier work failed.
    pub fn read(&self) -> Result<Vec<T>, CudaError> {
        self.view().read()
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

impl<'a, T: Element> View<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it. Panics when out of range, as slices do.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let (start, len) = part(self.len, range);
        Self { start: self.start + start, len, ..*self }
    }

    /// Waits for queued work, then copies everything to the host.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when earlier work failed.
    pub fn read(&self) -> Result<Vec<T>, CudaError> {
        let mut values = Vec::with_capacity(self.len);
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        // SAFETY: the source is `len` elements of this allocation, the target has room for them, and the stream is
        // waited for before either can go away. Every pattern of bits is an element, so they count as initialised.
        unsafe {
            let to: *mut T = values.as_mut_ptr();
            let copy = sys::cuMemcpyDtoHAsync_v2(to.cast(), self.address(), self.bytes(), gpu.stream());
            check("copy from the GPU", copy).and_then(|()| gpu.synchronise())?;
            values.set_len(self.len);
        }
        Ok(values)
    }

    /// Queues a copy into the first `self.len()` elements of `to`, which waits for it when it is read.
    ///
    /// # Errors
    /// [`KernelError::Range`] when `to` is shorter.
    pub fn copy_to_pinned(&self, to: &mut Pinned<T>) -> Result<(), CudaError> {
        fits("copy to pinned memory", self.len, to.len())?;
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        self.keep(gpu);
        // SAFETY: both sides hold `len` elements; the pinned side waits for this copy before it is touched or freed.
        let copy =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.address().cast(), self.address(), self.bytes(), gpu.stream()) };
        check("copy from the GPU", copy)?;
        to.memory().in_flight(gpu)
    }

    pub(super) fn address(&self) -> sys::CUdeviceptr {
        self.memory.address + (self.start * size_of::<T>()) as u64
    }

    pub(super) fn memory(&self) -> &'a Arc<Allocation> {
        self.memory
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// A recording keeps what it uses.
    fn keep(&self, gpu: &Gpu) {
        if let Some(mut captured) = gpu.captured() {
            captured.memory.push(self.memory.clone());
        }
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same part, to be read.
    pub fn view(&self) -> View<'_, T> {
        View { memory: self.memory, start: self.start, len: self.len, numbers: PhantomData }
    }

    /// The same part, to be written, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { memory: self.memory, start: self.start, len: self.len, numbers: PhantomData }
    }

    /// A part of it. Panics when out of range, as slices do.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> ViewMut<'_, T> {
        self.reborrow().into_slice(range)
    }

    /// A part of it, for as long. Panics when out of range, as slices do.
    pub fn into_slice(self, range: impl RangeBounds<usize>) -> Self {
        let (start, len) = part(self.len, range);
        Self { start: self.start + start, len, ..self }
    }

    /// Two parts that do not overlap. Panics when `at` is out of range.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "split of {} elements at {at}", self.len);
        let (memory, start, numbers) = (self.memory, self.start, PhantomData);
        (Self { memory, start, len: at, numbers }, Self { memory, start: start + at, len: self.len - at, numbers })
    }

    /// Copies `values` over it, and returns when `values` are read.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the lengths differ.
    pub fn write(&mut self, values: &[T]) -> Result<(), CudaError> {
        expect_len("copy to the GPU", "length", values.len(), self.len)?;
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        // SAFETY: both sides hold `len` elements; the stream is waited for before `values` can go away.
        let copy = unsafe {
            sys::cuMemcpyHtoDAsync_v2(self.address(), values.as_ptr().cast(), size_of_val(values), gpu.stream())
        };
        check("copy to the GPU", copy)?;
        gpu.synchronise()
    }

    /// As [`ViewMut::write`], of elements as they lie in a file.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when `bytes` are not exactly as many.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), CudaError> {
        expect_len("copy to the GPU", "length in bytes", bytes.len(), self.bytes())?;
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        // SAFETY: as in `write`; bytes have no alignment to keep, and every pattern of bits is an element.
        let copy =
            unsafe { sys::cuMemcpyHtoDAsync_v2(self.address(), bytes.as_ptr().cast(), bytes.len(), gpu.stream()) };
        check("copy to the GPU", copy)?;
        gpu.synchronise()
    }

    /// Queues a copy of the first `self.len()` elements of `from`, which waits for it before it is written again.
    ///
    /// # Errors
    /// [`KernelError::Range`] when `from` is shorter.
    pub fn copy_from_pinned(&mut self, from: &Pinned<T>) -> Result<(), CudaError> {
        fits("copy from pinned memory", self.len, from.len())?;
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        self.view().keep(gpu);
        // SAFETY: both sides hold `len` elements; the pinned side waits for this copy before it is touched or freed.
        let copy =
            unsafe { sys::cuMemcpyHtoDAsync_v2(self.address(), from.address().cast(), self.bytes(), gpu.stream()) };
        check("copy to the GPU", copy)?;
        from.memory().in_flight(gpu)
    }

    /// Queues a copy of `from`, which lies on the same device.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the lengths differ.
    pub fn copy_from(&mut self, from: View<'_, T>) -> Result<(), CudaError> {
        expect_len("copy on the GPU", "length", from.len(), self.len)?;
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        self.view().keep(gpu);
        from.keep(gpu);
        // SAFETY: both sides hold `len` elements of living allocations; freeing either waits for queued work.
        let copy = unsafe { sys::cuMemcpyDtoDAsync_v2(self.address(), from.address(), self.bytes(), gpu.stream()) };
        check("copy on the GPU", copy)
    }

    /// Queues filling it with zeros.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the driver refuses.
    pub fn fill_zero(&mut self) -> Result<(), CudaError> {
        let gpu = &self.memory.gpu;
        gpu.bind()?;
        self.view().keep(gpu);
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: exactly this part of a living allocation is written.
        check("clear device memory", unsafe { sys::cuMemsetD8Async(self.address(), 0, self.bytes(), gpu.stream()) })
    }

    pub(super) fn address(&self) -> sys::CUdeviceptr {
        self.view().address()
    }

    pub(super) fn memory(&self) -> &'a Arc<Allocation> {
        self.memory
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

fn fits(op: &'static str, len: usize, room: usize) -> Result<(), KernelError> {
    if len <= room { Ok(()) } else { Err(KernelError::Range { op, what: "length", found: len, limit: room + 1 }) }
}

fn part(len: usize, range: impl RangeBounds<usize>) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "elements {start}..{end} of {len}");
    (start, end - start)
}
