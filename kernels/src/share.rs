//! Ways for the parts of one operation to write into one output.

use crate::Pool;
use std::cell::Cell;

/// Operations on fewer elements than this run on the calling thread: waking others would take longer.
const SHARE_FROM: usize = 16 << 10;

/// A pointer into an output that parts write at disjoint places.
#[derive(Debug)]
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: only a number until it is followed; who follows it promises disjoint places.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(all: &mut [T]) -> Self {
        Self(all.as_mut_ptr())
    }

    /// Of memory whose parts several owners share.
    pub(crate) fn from_pointer(start: *mut T) -> Self {
        Self(start)
    }

    pub(crate) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }

    /// A piece of the output.
    ///
    /// # Safety
    /// `start..start + len` lies inside the slice given to [`Shared::new`], which outlives the piece, and nobody else
    /// touches it meanwhile.
    pub(crate) unsafe fn piece<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(start), len) }
    }
}

/// Rows a part gets when `rows` rows of `width` elements are shared among the threads.
pub(crate) fn rows_per_part(pool: &Pool, rows: usize, width: usize) -> usize {
    if rows * width < SHARE_FROM { rows.max(1) } else { rows.div_ceil(2 * pool.threads()).max(1) }
}

/// Sixteen floats on a cache line, so that vector loads never straddle two.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line(#[expect(dead_code, reason = "reached as a stretch of floats only")] [f32; 16]);

/// What may lie on cache lines with any bits.
///
/// # Safety
/// No padding, no bits that are no value, aligned to at most 64 bytes.
pub(crate) unsafe trait Plain {}
// SAFETY: a plain number of 1 byte.
unsafe impl Plain for u8 {}
// SAFETY: a plain number of 2 bytes.
unsafe impl Plain for u16 {}
// SAFETY: a plain number of 4 bytes.
unsafe impl Plain for u32 {}
// SAFETY: a plain number of 4 bytes.
unsafe impl Plain for f32 {}

/// The memory of floats as other numbers.
pub(crate) fn as_numbers<T: Plain>(floats: &mut [f32]) -> &mut [T] {
    const { assert!(align_of::<T>() <= align_of::<f32>(), "floats lie where such a number may") };
    let len = size_of_val(floats) / size_of::<T>();
    // SAFETY: the same bytes, borrowed exclusively for as long; any bits are a `T`, and any bits are a float.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), len) }
}

/// Numbers on cache lines that a thread keeps between calls, so that a step allocates nothing; what they hold at first is
/// whatever was there before.
pub(crate) fn with_scratch<T: Plain, R>(
    place: &'static std::thread::LocalKey<Cell<Vec<Line>>>,
    len: usize,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut lines = place.take();
    let wanted = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < wanted {
        lines.resize(wanted, Line([0.0; 16]));
    }
    // SAFETY: lines are initialised, without padding, and `len` numbers fit; any bits are a `T`.
    let numbers = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<T>(), len) };
    let result = work(numbers);
    place.set(lines);
    result
}
