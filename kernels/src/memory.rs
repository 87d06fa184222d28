//! Zeroed memory on 2 MiB pages, for weights, caches and large activations.
//!
//! Reading gigabytes a token, address translation is a cost of its own: with 4 KiB pages a quarter of the read bandwidth
//! is lost. The system is asked for huge pages; where it has none, everything works on small ones.

use crate::KernelError;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

const HUGE_PAGE: usize = 2 << 20;
/// From this size on, the length is rounded up to whole huge pages: the waste is then small.
const ROUND_UP_FROM: usize = 4 * HUGE_PAGE;

/// Owned, zeroed, 2 MiB-aligned bytes.
#[derive(Debug)]
pub(crate) struct HugeBuffer {
    start: NonNull<u8>,
    len: usize,
    mapped: usize,
}

// SAFETY: the buffer is plain memory with one owner; sharing follows the borrow rules of its slices.
unsafe impl Send for HugeBuffer {}
// SAFETY: as above.
unsafe impl Sync for HugeBuffer {}

impl HugeBuffer {
    /// Reserves `len` zero bytes; the system provides them when they are first touched.
    pub(crate) fn zeroed(len: usize) -> Result<Self, KernelError> {
        Self::with_huge_pages_from(0, len)
    }

    /// The same, with pages of 4 KiB up to byte `first_huge`.
    fn with_huge_pages_from(first_huge: usize, len: usize) -> Result<Self, KernelError> {
        if len == 0 {
            return Ok(Self { start: NonNull::dangling(), len, mapped: 0 });
        }
        let unit = if len >= ROUND_UP_FROM { HUGE_PAGE } else { 4096 };
        let mapped = len.checked_next_multiple_of(unit).ok_or(KernelError::Alloc { bytes: len })?;
        let start = sys::reserve(mapped, first_huge.min(mapped)).ok_or(KernelError::Alloc { bytes: len })?;
        Ok(Self { start, len, mapped })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first byte, for owners of parts that do not overlap.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for HugeBuffer {
    fn drop(&mut self) {
        if self.mapped > 0 {
            // SAFETY: exactly what `reserve` returned for this size, released once.
            unsafe { sys::release(self.start, self.mapped) };
        }
    }
}

/// Memory that the weights of one model are cut from, so that neighbours share huge pages and none lies on small ones.
#[derive(Debug, Default)]
pub struct WeightMemory {
    /// What is cut now, and how much of it is taken.
    chunk: RefCell<Option<(Arc<HugeBuffer>, usize)>>,
}

impl WeightMemory {
    /// Reserved at a time; pages are only taken when they are written.
    const CHUNK: usize = 64 << 20;
    /// Where a piece begins: a multiple of this.
    const ALIGNMENT: usize = 4096;

    /// A zeroed piece of `len` bytes.
    pub(crate) fn piece(&self, len: usize) -> Result<Piece, KernelError> {
        if len > Self::CHUNK / 2 {
            return Piece::alone(len);
        }
        let (chunk, taken) = match self.chunk.take() {
            Some((chunk, taken)) if chunk.len() - taken >= len => (chunk, taken),
            _ => (Arc::new(HugeBuffer::zeroed(Self::CHUNK)?), 0),
        };
        let next = (taken + len).next_multiple_of(Self::ALIGNMENT);
        self.chunk.replace(Some((Arc::clone(&chunk), next)));
        Ok(Piece { chunk, start: taken, len })
    }
}

/// Owned bytes of a chunk.
#[derive(Debug)]
pub(crate) struct Piece {
    chunk: Arc<HugeBuffer>,
    /// INVARIANT: `start..start + len` lies inside the chunk and overlaps no other piece.
    start: usize,
    len: usize,
}

impl Piece {
    /// A piece that is a chunk of its own.
    pub(crate) fn alone(len: usize) -> Result<Self, KernelError> {
        Ok(Self { chunk: Arc::new(HugeBuffer::zeroed(len)?), start: 0, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: initialised (zeroed) memory inside the chunk, which nobody else refers to.
        unsafe { std::slice::from_raw_parts(self.chunk.pointer().wrapping_add(self.start), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.pointer().wrapping_add(self.start), self.len) }
    }
}

/// Owned, zeroed floats: for activations. Unlike a vector's, their memory goes back to the system at once when they are
/// dropped, and no page is taken before it is used. Huge pages begin after 2 MiB: a step of a few rows touches little of
/// many such buffers.
#[derive(Debug)]
pub struct Floats(HugeBuffer);

impl Floats {
    /// Reserves `len` zeros.
    ///
    /// # Errors
    /// [`KernelError::Alloc`] when there is not enough memory.
    pub fn zeroed(len: usize) -> Result<Self, KernelError> {
        let bytes = len.checked_mul(size_of::<f32>()).ok_or(KernelError::Alloc { bytes: usize::MAX })?;
        HugeBuffer::with_huge_pages_from(HUGE_PAGE, bytes).map(Self)
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: the buffer is 2 MiB-aligned, initialised and a whole number of floats long; any bits are a float.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().cast(), self.0.len / size_of::<f32>()) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        if self.0.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr().cast(), self.0.len / size_of::<f32>()) }
    }
}

#[cfg(target_os = "linux")]
mod sys {
    use super::HUGE_PAGE;
    use std::ptr::NonNull;

    /// Maps `len` (whole small pages) zero bytes at a multiple of 2 MiB, on huge pages from `first_huge <= len` on.
    pub(super) fn reserve(len: usize, first_huge: usize) -> Option<NonNull<u8>> {
        let padded = len.checked_add(HUGE_PAGE)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping touches no memory of ours.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), padded, protection, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return None;
        }
        let before = raw.addr().next_multiple_of(HUGE_PAGE) - raw.addr();
        let start = raw.wrapping_byte_add(before);
        // SAFETY: both ranges lie inside the mapping made above, outside of `start..start + len`, and are page-aligned.
        // The advice is a hint about the rest; without huge pages it changes nothing, so its result does not matter.
        unsafe {
            if before > 0 {
                libc::munmap(raw, before);
            }
            if HUGE_PAGE > before {
                libc::munmap(start.byte_add(len), HUGE_PAGE - before);
            }
            libc::madvise(start.byte_add(first_huge), len - first_huge, libc::MADV_HUGEPAGE);
        }
        NonNull::new(start.cast())
    }

    /// # Safety
    /// `start` and `len` are what one call of [`reserve`] returned and took; nothing points into it any more.
    pub(super) unsafe fn release(start: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use super::HUGE_PAGE;
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    pub(super) fn reserve(len: usize, _first_huge: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(len, HUGE_PAGE).ok()?;
        // SAFETY: `len` is not zero.
        NonNull::new(unsafe { alloc_zeroed(layout) })
    }

    /// # Safety
    /// `start` and `len` are what one call of [`reserve`] returned and took; nothing points into it any more.
    pub(super) unsafe fn release(start: NonNull<u8>, len: usize) {
        let layout = Layout::from_size_align(len, HUGE_PAGE).expect("the same layout was allocated");
        // SAFETY: the caller's promise.
        unsafe { dealloc(start.as_ptr(), layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_as_long_as_asked() {
        for len in [0, 1, 4096, HUGE_PAGE - 1, HUGE_PAGE, 9 * HUGE_PAGE + 5] {
            let mut piece = Piece::alone(len).unwrap();
            assert_eq!(piece.bytes().len(), len);
            assert!(piece.bytes().iter().all(|&b| b == 0));
            piece.bytes_mut().fill(7);
            assert!(len == 0 || piece.bytes().as_ptr().addr().is_multiple_of(HUGE_PAGE));
        }
    }

    #[test]
    fn pieces_of_weight_memory_keep_apart_and_outlive_it() {
        let memory = WeightMemory::default();
        let sizes = [0, 1, 5000, WeightMemory::CHUNK / 2, WeightMemory::CHUNK / 2, 64, WeightMemory::CHUNK + 1];
        let mut pieces: Vec<Piece> = sizes.iter().map(|&len| memory.piece(len).unwrap()).collect();
        drop(memory);
        for (piece, number) in pieces.iter_mut().zip(1..) {
            assert!(piece.bytes().iter().all(|&byte| byte == 0) && piece.start.is_multiple_of(64));
            piece.bytes_mut().fill(number);
        }
        for ((piece, number), len) in pieces.iter().zip(1..).zip(sizes) {
            assert!(piece.bytes().len() == len && piece.bytes().iter().all(|&byte| byte == number));
        }
    }

    #[test]
    fn floats_are_zero_and_keep_what_is_written() {
        for len in [0, 1, 1023, HUGE_PAGE + 3] {
            let mut floats = Floats::zeroed(len).unwrap();
            assert_eq!(floats.len(), len);
            assert!(floats.iter().all(|&value| value == 0.0));
            floats.iter_mut().zip((0..=255u8).cycle()).for_each(|(value, number)| *value = number.into());
            assert!(floats.iter().zip((0..=255u8).cycle()).all(|(&value, number)| value == f32::from(number)));
        }
        assert_eq!(Floats::zeroed(usize::MAX).unwrap_err(), KernelError::Alloc { bytes: usize::MAX });
    }

    #[test]
    fn a_size_nobody_has_is_an_error() {
        assert_eq!(HugeBuffer::zeroed(usize::MAX).unwrap_err(), KernelError::Alloc { bytes: usize::MAX });
        assert!(HugeBuffer::zeroed(1 << 60).is_err());
    }
}
