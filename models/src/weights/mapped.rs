//! The bytes of a weight file: mapped into memory a range at a time, or part of the program.
//!
//! A range is resident only while somebody holds it. So a load that takes tensor after tensor holds the weights about
//! once, not twice.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapOptions};

use crate::weights::WeightsError;

/// One weight file and the name that messages call it by.
#[derive(Debug)]
pub struct FileBytes {
    name: String,
    len: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File { path: PathBuf, file: File },
    Memory(Cow<'static, [u8]>),
}

/// A range of a weight file. Dropping it gives its pages back.
#[derive(Debug)]
pub enum MappedBytes<'a> {
    /// Memory that stays where it is.
    Borrowed(&'a [u8]),
    /// Bytes brought into another order.
    Owned(Vec<u8>),
    /// A part of a mapping.
    Mapped {
        /// Pages of the file.
        pages: Mmap,
        /// The bytes meant.
        range: Range<usize>,
    },
}

impl FileBytes {
    /// Opens a file.
    ///
    /// It must not be shortened or rewritten while the model loads: the system answers reads beyond its new end with a
    /// bus error, which no program can turn into a message.
    ///
    /// # Errors
    /// [`WeightsError::Open`] when it cannot be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let error = |source| WeightsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let len = usize::try_from(metadata.len()).map_err(|_| error(io::ErrorKind::FileTooLarge.into()))?;
        let content = Content::File { path: path.to_owned(), file };
        Ok(Self { name: path.display().to_string(), len, content })
    }

    /// Takes bytes that are in memory anyway, such as the bundled model's.
    pub fn from_memory(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { name: name.into(), len: bytes.len(), content: Content::Memory(bytes) }
    }

    /// The file's name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of the file.
    pub fn file_len(&self) -> usize {
        self.len
    }

    /// Name, length and time of the last change, in nanoseconds since 1970.
    pub fn stamp(&self) -> String {
        let changed = match &self.content {
            Content::File { file, .. } => file.metadata().and_then(|metadata| metadata.modified()).ok(),
            Content::Memory(_) => None,
        };
        let changed = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        format!("{} {} {}", self.name, self.len, changed.unwrap_or_default().as_nanos())
    }

    /// All bytes, for reading a header.
    ///
    /// # Errors
    /// [`WeightsError::Open`] when the file cannot be mapped.
    pub fn whole(&self) -> Result<MappedBytes<'_>, WeightsError> {
        self.range(0..self.len)
    }

    /// The bytes of a range.
    ///
    /// # Errors
    /// [`WeightsError::Damaged`] when it lies beyond the end of the file, [`WeightsError::Open`] when it cannot be
    /// mapped.
    pub fn range(&self, range: Range<usize>) -> Result<MappedBytes<'_>, WeightsError> {
        if range.start > range.end || range.end > self.len {
            return Err(WeightsError::damaged(&self.name, format!("it ends before byte {}", range.end)));
        }
        match &self.content {
            _ if range.is_empty() => Ok(MappedBytes::Borrowed(&[])),
            Content::Memory(bytes) => Ok(MappedBytes::Borrowed(&bytes[range])),
            Content::File { path, file } => {
                let error = |source| WeightsError::Open { path: path.clone(), source };
                // A file cut short since it was opened is noticed here rather than by a bus error later.
                if file.metadata().map_err(error)?.len() < range.end as u64 {
                    return Err(WeightsError::damaged(&self.name, "it has become shorter since it was opened"));
                }
                let pages = map(file, &range).map_err(error)?;
                let range = 0..pages.len();
                Ok(MappedBytes::Mapped { pages, range })
            }
        }
    }
}

/// Maps a range of a file, privately and read-only.
fn map(file: &File, range: &Range<usize>) -> io::Result<Mmap> {
    let mut options = MmapOptions::new();
    options.offset(range.start as u64).len(range.len());
    // UNSAFE EXCEPTION of this package, the only one.
    // SAFETY: the mapping is private and read-only, and readers are bounded by its length, which lies within the file.
    // That nobody shortens the file meanwhile is the documented condition of `FileBytes::open`.
    unsafe { options.map(file) }
}

impl MappedBytes<'_> {
    /// The same memory, narrowed to a part.
    pub(crate) fn narrowed(self, part: Range<usize>) -> Self {
        match self {
            Self::Borrowed(bytes) => Self::Borrowed(&bytes[part]),
            Self::Owned(bytes) => Self::Owned(bytes[part].to_vec()),
            Self::Mapped { pages, range } => {
                Self::Mapped { pages, range: range.start + part.start..range.start + part.end }
            }
        }
    }
}

impl Deref for MappedBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Mapped { pages, range } => &pages[range.clone()],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_range_of_a_file_reads_as_it_was_written() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..40_000_u32).map(|index| (index % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let bytes = FileBytes::open(file.path()).unwrap();
        for range in [0..0, 0..1, 100..39_000, 4096..8192, 4095..4098, 39_999..40_000, 40_000..40_000, 0..40_000] {
            assert_eq!(&bytes.range(range.clone()).unwrap()[..], &content[range]);
        }
        assert_eq!(&bytes.whole().unwrap().narrowed(10..20).narrowed(1..3)[..], &content[11..13]);
        assert!(bytes.range(39_999..40_001).is_err());
    }

    #[test]
    fn a_file_that_shrinks_after_it_was_opened_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        let bytes = FileBytes::open(file.path()).unwrap();
        file.as_file().set_len(5000).unwrap();
        let message = bytes.range(4000..6000).unwrap_err().to_string();
        assert!(message.contains("has become shorter"), "{message}");
    }

    #[test]
    fn a_folder_is_not_a_weight_file() {
        let folder = tempfile::tempdir().unwrap();
        let message = FileBytes::open(folder.path()).unwrap_err().to_string();
        assert!(message.starts_with("cannot open weight file"), "{message}");
    }
}
