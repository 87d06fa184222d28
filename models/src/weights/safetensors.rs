//! Safetensors files: one, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path};

use safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;

use crate::weights::tensor::shard_range;
use crate::weights::{FileBytes, MappedBytes, Shard, TensorFormat, TensorHeader, Weights, WeightsError};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// An index of 100,000 tensors is a tenth of this.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The safetensors files of one model.
#[derive(Debug)]
pub struct SafetensorsWeights {
    place: String,
    files: Vec<FileBytes>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    header: TensorHeader,
    range: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsWeights {
    /// Opens a folder's `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`WeightsError`] naming the file when one is missing, damaged, or not what the index says.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let single = folder.join(SINGLE_FILE);
        let index = folder.join(INDEX_FILE);
        if single.exists() {
            return Self::from_files(folder.display().to_string(), vec![FileBytes::open(&single)?]);
        }
        if !index.exists() {
            return Err(WeightsError::unsupported(
                &folder.display().to_string(),
                format!("it holds neither `{SINGLE_FILE}` nor `{INDEX_FILE}`; other weight files are not read"),
            ));
        }
        Self::open_sharded(folder, &index)
    }

    /// Takes files that are open already, such as the bundled model's.
    ///
    /// # Errors
    /// [`WeightsError::Damaged`] naming the file.
    pub fn from_files(place: String, files: Vec<FileBytes>) -> Result<Self, WeightsError> {
        let mut weights = Self { place, files: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            weights.add(file)?;
        }
        Ok(weights)
    }

    fn open_sharded(folder: &Path, index_path: &Path) -> Result<Self, WeightsError> {
        let name = index_path.display().to_string();
        let open = |source| WeightsError::Open { path: index_path.to_owned(), source };
        if std::fs::metadata(index_path).map_err(open)?.len() > MAX_INDEX_BYTES {
            return Err(WeightsError::damaged(&name, format!("it is larger than {MAX_INDEX_BYTES} bytes")));
        }
        let text = std::fs::read(index_path).map_err(open)?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|error| WeightsError::damaged(&name, error.to_string()))?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        let mut files = Vec::with_capacity(shards.len());
        for shard in shards {
            if !is_plain_file_name(shard) {
                return Err(WeightsError::damaged(&name, format!("it lists `{shard}`, which is not a file name")));
            }
            files.push(FileBytes::open(&folder.join(shard))?);
        }
        let weights = Self::from_files(folder.display().to_string(), files)?;
        match index.weight_map.keys().find(|tensor| !weights.tensors.contains_key(*tensor)) {
            None => Ok(weights),
            Some(tensor) => {
                let file = folder.join(&index.weight_map[tensor]).display().to_string();
                Err(WeightsError::Missing { name: tensor.clone(), file })
            }
        }
    }

    fn add(&mut self, bytes: FileBytes) -> Result<(), WeightsError> {
        let name = bytes.name().to_owned();
        let (header_bytes, metadata) = SafeTensors::read_metadata(&bytes.whole()?)
            .map_err(|error| WeightsError::damaged(&name, describe(&error)))?;
        let data_start = 8 + header_bytes;
        for (tensor, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let range = data_start + start..data_start + end;
            if range.end > bytes.file_len() {
                return Err(WeightsError::damaged(&name, format!("tensor `{tensor}` lies beyond the end of the file")));
            }
            let header = TensorHeader { shape: info.shape.clone(), format: TensorFormat::of_safetensors(info.dtype) };
            let entry = Entry { file: self.files.len(), header, range };
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(WeightsError::damaged(&name, format!("tensor `{tensor}` is in an earlier file as well")));
            }
        }
        self.files.push(bytes);
        Ok(())
    }

    /// Length of all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.file_len() as u64).sum()
    }

    /// How many files there are.
    pub fn num_files(&self) -> usize {
        self.files.len()
    }
}

impl Weights for SafetensorsWeights {
    fn header(&self, name: &str) -> Option<TensorHeader> {
        self.tensors.get(name).map(|entry| entry.header.clone())
    }

    fn read(&self, name: &str, shard: Shard) -> Result<MappedBytes<'_>, WeightsError> {
        match self.tensors.get(name) {
            Some(entry) => {
                let part = shard_range(entry.range.len(), &entry.header.shape, shard);
                self.files[entry.file].range(entry.range.start + part.start..entry.range.start + part.end)
            }
            None => Err(WeightsError::Missing { name: name.to_owned(), file: self.place.clone() }),
        }
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn place(&self, name: &str) -> (String, String) {
        let file = self.tensors.get(name).map_or(self.place.as_str(), |entry| self.files[entry.file].name());
        (file.to_owned(), name.to_owned())
    }

    fn stamp(&self) -> String {
        let stamps: Vec<String> = self.files.iter().map(FileBytes::stamp).collect();
        stamps.join("\n")
    }
}

fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

fn describe(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::HeaderTooSmall => "it is shorter than its own header".into(),
        SafeTensorError::HeaderTooLarge => "its header is larger than 100 MB".into(),
        SafeTensorError::InvalidHeaderLength => "its header is longer than the file".into(),
        SafeTensorError::MetadataIncompleteBuffer => {
            "the tensors in its header do not add up to its length; it may be cut short".into()
        }
        SafeTensorError::ValidationOverflow => "a tensor's size overflows".into(),
        SafeTensorError::TensorInvalidInfo => "a tensor's bytes do not fit its shape".into(),
        SafeTensorError::InvalidOffset(tensor) => format!("tensor `{tensor}` has overlapping or unordered offsets"),
        other => other.to_string(),
    }
}
