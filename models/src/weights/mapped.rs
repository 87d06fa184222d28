//! The bytes of a weight file: mapped into memory, or part of the program.

use std::borrow::Cow;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::weights::WeightsError;

/// The bytes of one weight file and the name that messages call it by.
#[derive(Debug)]
pub struct FileBytes {
    name: String,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl FileBytes {
    /// Maps a file into memory.
    ///
    /// The file must not be shortened or rewritten while the model loads: the system answers reads beyond its new end
    /// with a bus error, which no program can turn into a message.
    ///
    /// # Errors
    /// [`WeightsError::Open`] when it cannot be opened or mapped.
    pub fn map(path: &Path) -> Result<Self, WeightsError> {
        let open = |source| WeightsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        if !file.metadata().map_err(open)?.is_file() {
            return Err(open(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        // SAFETY: the mapping is private and read-only, and every reader bounds itself by its length. That nobody
        // shortens the file meanwhile is the documented condition above.
        let mapped = unsafe { Mmap::map(&file) }.map_err(open)?;
        Ok(Self { name: path.display().to_string(), bytes: Bytes::Mapped(mapped) })
    }

    /// Takes bytes that are in memory anyway, such as the bundled model's.
    pub fn from_memory(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { name: name.into(), bytes: Bytes::Memory(bytes.into()) }
    }

    /// The file's name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says that a range will not be read again soon, so that its pages need not stay resident.
    pub fn release(&self, range: Range<usize>) {
        let Bytes::Mapped(mapped) = &self.bytes else { return };
        // Whole pages only: a neighbour's tensor may share the first and the last one, and would be read twice.
        const PAGE: usize = 4096;
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end.min(mapped.len()) / PAGE * PAGE;
        if start < end {
            // SAFETY: the mapping is backed by a file and never written, so dropped pages read the same again.
            // A refusal (pages larger than we think) only costs memory, hence the ignored result.
            let _ = unsafe { mapped.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(mapped) => mapped,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..40_000_u32).map(|index| (index % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let mapped = FileBytes::map(file.path()).unwrap();
        assert_eq!(&mapped[..], &content[..]);
        mapped.release(100..39_000);
        assert_eq!(&mapped[..], &content[..]);
    }

    #[test]
    fn a_folder_is_not_a_weight_file() {
        let folder = tempfile::tempdir().unwrap();
        let message = FileBytes::map(folder.path()).unwrap_err().to_string();
        assert!(message.starts_with("cannot open weight file"), "{message}");
    }
}
