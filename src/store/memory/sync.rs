//! The lock of the counters: the standard library's; in unit tests shuttle's, which tries out interleavings.
//!
//! Unit tests that touch the counters therefore run inside `shuttle::check_random` or one of its like.

#[cfg(not(test))]
pub(super) use std::sync::{Mutex, MutexGuard};

#[cfg(test)]
pub(super) use shuttle::sync::{Mutex, MutexGuard};

use std::sync::PoisonError;

/// Locks; a panic in one request while it held the lock must not end governance for all others.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
