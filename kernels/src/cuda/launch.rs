//! The loaded kernels, and launching one with its arguments.

use cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use super::buffer::Allocation;
use super::device::lock;
use super::error::check;
use super::{CudaError, Element, Gpu, View, ViewMut};
use crate::KernelError;

/// Name and machine code of each file of `kernels/cuda`.
static IMAGES: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/images.rs"));

const MAX_ARGUMENTS: usize = 32;

/// All kernels, loaded.
pub(super) struct Modules(Vec<sys::CUmodule>);

impl Modules {
    /// Loads every image into the current context.
    pub(super) fn load() -> Result<Self, CudaError> {
        let mut modules = Self(Vec::new());
        for (name, image) in IMAGES {
            let mut module = std::ptr::null_mut();
            // The driver reads headers of eight-byte numbers; bytes of the program may lie anywhere.
            let mut aligned = vec![0u64; image.len().div_ceil(8).max(1)];
            for (to, from) in aligned.iter_mut().zip(image.chunks(8)) {
                let mut bytes = [0; 8];
                bytes[..from.len()].copy_from_slice(from);
                *to = u64::from_ne_bytes(bytes);
            }
            // SAFETY: the image is a complete fat binary of this program; one handle is written. (Images are empty in
            // builds for the emulator only, and a real driver refuses them.)
            check(name, unsafe { sys::cuModuleLoadData(&mut module, aligned.as_ptr().cast()) })?;
            modules.0.push(module);
        }
        Ok(modules)
    }

    fn find(&self, name: &[&'static str; 3]) -> Result<sys::CUfunction, CudaError> {
        let parts: Vec<&str> = name.iter().copied().filter(|part| !part.is_empty()).collect();
        let full = CString::new(parts.join("_")).expect("names of kernels hold no zero byte");
        let mut function = std::ptr::null_mut();
        for &module in &self.0 {
            // SAFETY: the module is loaded, the name ends with a zero; one handle is written.
            if unsafe { sys::cuModuleGetFunction(&mut function, module, full.as_ptr()) } == sys::CUresult::CUDA_SUCCESS
            {
                return Ok(function);
            }
        }
        check(name[0], sys::CUresult::CUDA_ERROR_NOT_FOUND).map(|()| function)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for &module in &self.0 {
            // SAFETY: loaded once, and no kernel of it runs any more: the device's stream was waited for. Its context is
            // current, and never closed.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }
}

/// A kernel, and how much dynamic shared memory it was allowed so far.
#[derive(Clone, Copy)]
pub(super) struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// How a launch is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Blocks.
    pub(super) grid: (u32, u32, u32),
    /// Threads of a block.
    pub(super) threads: u32,
    /// Dynamic shared memory of a block.
    pub(super) shared_bytes: u32,
}

impl Cut {
    /// `blocks` blocks of `threads` threads.
    pub(super) fn new(blocks: usize, threads: usize) -> Self {
        Self::grid((blocks, 1, 1), threads).shared(0)
    }

    /// `blocks.0` by `blocks.1` by `blocks.2` blocks.
    pub(super) fn grid(blocks: (usize, usize, usize), threads: usize) -> Self {
        let grid = (narrow(blocks.0), narrow(blocks.1), narrow(blocks.2));
        Self { grid, threads: narrow(threads), shared_bytes: 0 }
    }

    /// With dynamic shared memory.
    pub(super) fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: narrow(bytes), ..self }
    }
}

/// A count too large for a launch becomes one that the driver refuses.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The arguments of a launch, in the kernel's order and with the kernel's sizes.
pub(super) struct Args<'a> {
    slots: [u64; MAX_ARGUMENTS],
    memory: [Option<&'a Arc<Allocation>>; MAX_ARGUMENTS],
    len: usize,
}

impl<'a> Args<'a> {
    pub(super) fn new() -> Self {
        Self { slots: [0; MAX_ARGUMENTS], memory: [None; MAX_ARGUMENTS], len: 0 }
    }

    /// A pointer to memory that the kernel reads.
    pub(super) fn input<T: Element>(self, view: View<'a, T>) -> Self {
        self.push(view.address(), Some(view.memory()))
    }

    /// A pointer to memory that the kernel reads, or null.
    pub(super) fn optional<T: Element>(self, view: Option<View<'a, T>>) -> Self {
        match view {
            Some(view) => self.input(view),
            None => self.push(0, None),
        }
    }

    /// A pointer to memory that the kernel writes.
    pub(super) fn output<T: Element>(self, view: &ViewMut<'a, T>) -> Self {
        self.push(view.address(), Some(view.memory()))
    }

    /// An `int`; counts are checked to fit by whoever checks shapes.
    pub(super) fn int(self, value: usize) -> Self {
        self.push(u64::from(narrow(value)), None)
    }

    /// A `float`.
    pub(super) fn float(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()), None)
    }

    /// A 64-bit integer.
    pub(super) fn long(self, value: u64) -> Self {
        self.push(value, None)
    }

    fn push(mut self, value: u64, memory: Option<&'a Arc<Allocation>>) -> Self {
        self.slots[self.len] = value;
        self.memory[self.len] = memory;
        self.len += 1;
        self
    }
}

/// Refuses views that do not start at a multiple of 16 bytes, which wide loads need.
pub(super) fn aligned<T: Element>(op: &'static str, views: &[View<'_, T>]) -> Result<(), KernelError> {
    match views.iter().find(|view| !view.address().is_multiple_of(16)) {
        Some(view) => {
            let found = (view.address() % 16) as usize;
            Err(KernelError::Shape {
                op,
                what: "bytes after a multiple of 16 at which a view starts",
                found,
                wanted: 0,
            })
        }
        None => Ok(()),
    }
}

/// Packs of `lanes` elements in a row; refuses rows that are not whole packs.
pub(super) fn packs(op: &'static str, width: usize, lanes: usize) -> Result<usize, KernelError> {
    if width == 0 || !width.is_multiple_of(lanes) {
        let wanted = width.next_multiple_of(lanes).max(lanes);
        return Err(KernelError::Shape { op, what: "width (a multiple of 16 bytes)", found: width, wanted });
    }
    Ok(width / lanes)
}

impl Gpu {
    /// Queues kernel `name`: a name and up to two suffixes, joined by `_`. Nothing happens when there are no blocks.
    ///
    /// # Safety
    /// The arguments have the types the kernel declares, and with these arguments and this cut it stays within the
    /// memory they point to.
    pub(super) unsafe fn launch(&self, name: [&'static str; 3], cut: Cut, args: &Args<'_>) -> Result<(), CudaError> {
        if cut.grid.0 == 0 || cut.grid.1 == 0 || cut.grid.2 == 0 {
            return Ok(());
        }
        self.bind()?;
        let function = self.function(name, cut.shared_bytes)?;
        if let Some(mut captured) = self.captured() {
            captured.memory.extend(args.memory.iter().copied().flatten().cloned());
        }
        let mut slots = args.slots;
        let mut pointers: [*mut c_void; MAX_ARGUMENTS] = slots.each_mut().map(|slot| std::ptr::from_mut(slot).cast());
        let (grid, none) = (cut.grid, std::ptr::null_mut());
        // SAFETY: the caller's promise; the driver copies the arguments before it returns. They are little-endian, so a
        // narrow one is the first bytes of its slot.
        let result = unsafe {
            let arguments = pointers.as_mut_ptr();
            let (x, y, z) = grid;
            sys::cuLaunchKernel(function, x, y, z, cut.threads, 1, 1, cut.shared_bytes, self.stream(), arguments, none)
        };
        check(name[0], result)
    }

    fn function(&self, name: [&'static str; 3], shared_bytes: u32) -> Result<sys::CUfunction, CudaError> {
        let mut functions = lock(&self.0.functions);
        let found = match functions.get(&name) {
            Some(&found) => found,
            None => Function { handle: self.modules().find(&name)?, shared_bytes: 0 },
        };
        if shared_bytes > found.shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the function is loaded; the driver refuses what the device does not have.
            check(name[0], unsafe { sys::cuFuncSetAttribute(found.handle, attribute, bytes) })?;
        }
        let shared_bytes = found.shared_bytes.max(shared_bytes);
        functions.insert(name, Function { shared_bytes, ..found });
        Ok(found.handle)
    }
}
