//! GGUF files: header, metadata and the directory of tensors, over a mapped file.
//!
//! Versions 2 and 3, little endian. Every length is checked against the file before it is used.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::weights::gguf_value::Cursor;
use crate::weights::{FileBytes, GgufValue, MappedBytes, TensorFormat, WeightsError};

/// Alignment of tensor data where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Tensors of one file; large models have a few thousand.
const MAX_TENSORS: u64 = 1 << 20;
/// Dimensions of one tensor, as in the specification.
const MAX_DIMENSIONS: u32 = 4;

/// A GGUF file whose header has been read and checked.
#[derive(Debug)]
pub struct GgufFile {
    bytes: FileBytes,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, GgufTensor>,
}

/// One tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Sizes, rows first (the file stores them the other way round).
    pub shape: Vec<usize>,
    /// Element type.
    pub format: TensorFormat,
    /// Bytes in the file; empty for types whose size is not known.
    pub range: Range<usize>,
}

impl GgufFile {
    /// Reads and checks the header of a mapped file.
    ///
    /// # Errors
    /// [`WeightsError::Damaged`] naming what is wrong and where; [`WeightsError::Unsupported`] for versions, byte
    /// orders and split files that we do not read.
    pub fn parse(bytes: FileBytes) -> Result<Self, WeightsError> {
        let file = bytes.name().to_owned();
        let whole = bytes.whole()?;
        let mut cursor = Cursor::new(&file, &whole);
        if cursor.take(4)? != b"GGUF" {
            return Err(WeightsError::damaged(&file, "it does not begin with `GGUF`"));
        }
        match cursor.u32()? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err(WeightsError::unsupported(&file, "it is big endian, little endian is supported"));
            }
            version => {
                return Err(WeightsError::unsupported(&file, format!("GGUF version {version}, 2 and 3 are supported")));
            }
        }
        let num_tensors = cursor.u64()?;
        let num_values = cursor.u64()?;
        let metadata = read_metadata(&mut cursor, num_values)?;
        refuse_split(&file, &metadata)?;
        let directory = read_directory(&mut cursor, num_tensors)?;
        let alignment = alignment(&file, &metadata)?;
        let data_start = (cursor.position() as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, entry) in directory {
            let tensor = place(&file, &name, entry, data_start, alignment, whole.len())?;
            tensors.insert(name, tensor);
        }
        drop(whole);
        Ok(Self { bytes, metadata, tensors })
    }

    /// The file's name for messages.
    pub fn name(&self) -> &str {
        self.bytes.name()
    }

    /// A metadata value.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// All metadata by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// All tensors by their name in the file.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// As [`FileBytes::range`].
    pub fn tensor_bytes(&self, tensor: &GgufTensor) -> Result<MappedBytes<'_>, WeightsError> {
        self.bytes.range(tensor.range.clone())
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.file_len() as u64
    }

    /// As [`FileBytes::stamp`].
    pub fn stamp(&self) -> String {
        self.bytes.stamp()
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, GgufValue>, WeightsError> {
    // A pair takes at least a key length, a type and one byte.
    if count > cursor.remaining() / 13 {
        return Err(cursor.error(format!("{count} metadata values are announced")));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string()?;
        let value = cursor.value()?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.error(format!("metadata key `{key}` appears twice")));
        }
    }
    Ok(metadata)
}

fn refuse_split(file: &str, metadata: &BTreeMap<String, GgufValue>) -> Result<(), WeightsError> {
    match metadata.get("split.count").and_then(GgufValue::as_u64) {
        Some(parts) if parts > 1 => Err(WeightsError::unsupported(
            file,
            format!("it is one of {parts} parts of a split model; merge them into one file first"),
        )),
        _ => Ok(()),
    }
}

fn alignment(file: &str, metadata: &BTreeMap<String, GgufValue>) -> Result<u64, WeightsError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => match value.as_u64() {
            Some(alignment @ 1..=65536) if alignment.is_power_of_two() => Ok(alignment),
            _ => Err(WeightsError::damaged(file, format!("general.alignment is {value:?}, it must be a power of two"))),
        },
    }
}

struct DirectoryEntry {
    shape: Vec<usize>,
    format: TensorFormat,
    offset: u64,
}

fn read_directory(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, DirectoryEntry>, WeightsError> {
    // An entry takes at least a name length, a number of dimensions, a type and an offset.
    if count > MAX_TENSORS || count > cursor.remaining() / 24 {
        return Err(cursor.error(format!("{count} tensors are announced")));
    }
    let mut directory = BTreeMap::new();
    for _ in 0..count {
        let name = cursor.string()?;
        let dimensions = cursor.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(cursor.error(format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let size = usize::try_from(cursor.u64()?);
            shape.push(size.map_err(|_| cursor.error(format!("tensor `{name}` has a size that overflows")))?);
        }
        shape.reverse();
        let format = TensorFormat::of_gguf(cursor.u32()?);
        let offset = cursor.u64()?;
        if directory.insert(name.clone(), DirectoryEntry { shape, format, offset }).is_some() {
            return Err(cursor.error(format!("tensor `{name}` appears twice")));
        }
    }
    Ok(directory)
}

fn place(
    file: &str,
    name: &str,
    entry: DirectoryEntry,
    data_start: u64,
    alignment: u64,
    file_len: usize,
) -> Result<GgufTensor, WeightsError> {
    let damaged = |reason: String| WeightsError::damaged(file, format!("tensor `{name}` {reason}"));
    let DirectoryEntry { shape, format, offset } = entry;
    let TensorFormat::Known(known) = format else {
        return Ok(GgufTensor { shape, format, range: 0..0 });
    };
    if !offset.is_multiple_of(alignment) {
        return Err(damaged(format!("begins at offset {offset}, which is not aligned to {alignment}")));
    }
    let Some(length) = TensorFormat::file_bytes(known, &shape) else {
        return Err(damaged(format!("has shape {shape:?}, which {} cannot hold", format.name())));
    };
    let end = data_start.checked_add(offset).and_then(|start| Some((start, start.checked_add(length as u64)?)));
    match end {
        Some((start, end)) if end <= file_len as u64 => {
            Ok(GgufTensor { shape, format, range: start as usize..end as usize })
        }
        _ => Err(damaged(format!("needs {length} bytes at offset {offset}, which is beyond the end of the file"))),
    }
}
