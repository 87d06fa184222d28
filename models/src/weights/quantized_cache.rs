//! Quantised matrices of an earlier load, kept in one file so that the next start need not quantise again.
//!
//! A safetensors file: each matrix as bytes `[rows, bytes of a row]`, and in its metadata what it was made from.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{fs, io};

use safetensors::{Dtype, SafeTensorError, SafeTensors, View, serialize_to_file};

use crate::options::QuantizeTo;
use crate::progress::Progress;
use crate::weights::quantized::{QuantizedWeights, Targets};
use crate::weights::{FileBytes, MappedBytes, SafetensorsWeights, Shard, Weights, WeightsError};

/// Where the file says what it was made from.
const STAMP: &str = "millgate.made_from";
/// How the names of folders begin in which files are being written.
const DRAFTS: &str = ".draft-";

/// An open cache file that fits its model.
#[derive(Debug)]
pub(crate) struct QuantizedCache {
    tensors: SafetensorsWeights,
}

/// Why quantised weights could not be kept. The model can be loaded all the same.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file cannot be written.
    #[error("cannot write quantized weights to `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The weights themselves cannot be quantised, or nobody wants them any more.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl QuantizedCache {
    /// Opens the cache of these weights in `folder`, writing it first unless it is there and fits.
    ///
    /// # Errors
    /// [`CacheError::Write`] when the folder cannot be written or is full; nothing half-written stays.
    pub(crate) fn open_or_write(
        folder: &Path,
        weights: &QuantizedWeights<'_>,
        to: QuantizeTo,
        progress: &dyn Progress,
    ) -> Result<Self, CacheError> {
        let stamp = stamp(weights);
        let path = folder.join(file_name(weights, to));
        if let Some(cache) = Self::open(&path, weights.targets, &stamp) {
            return Ok(cache);
        }
        let failed = |source| CacheError::Write { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        remove_abandoned(folder);
        write(&path, weights, to, stamp.clone(), progress)?;
        Self::open(&path, weights.targets, &stamp).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    /// `None` when there is no such file, or one of another model, program version or file state.
    fn open(path: &Path, targets: &Targets, stamp: &str) -> Option<Self> {
        let file = FileBytes::open(path).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&file.whole().ok()?).ok()?;
        if metadata.metadata().as_ref()?.get(STAMP)? != stamp {
            return None;
        }
        let tensors = SafetensorsWeights::from_files(file.name().to_owned(), vec![file]).ok()?;
        targets.keys().all(|name| tensors.header(name).is_some()).then_some(Self { tensors })
    }

    /// The blocks of one matrix.
    pub(crate) fn read(&self, name: &str, shard: Shard) -> Result<MappedBytes<'_>, WeightsError> {
        self.tensors.read(name, shard)
    }
}

/// What a cache was made from: the files, the formats, and the shapes in them.
fn stamp(weights: &QuantizedWeights<'_>) -> String {
    let mut stamp = format!("{}\n{}\n", env!("CARGO_PKG_VERSION"), weights.stamp());
    for (name, format) in weights.targets {
        let shape = weights.header(name).map(|header| header.shape).unwrap_or_default();
        stamp.push_str(&format!("{name} {} {shape:?}\n", format.name()));
    }
    stamp
}

/// One file a model and format: a model whose files change takes its old cache's place.
fn file_name(weights: &QuantizedWeights<'_>, to: QuantizeTo) -> String {
    let mut hasher = DefaultHasher::new();
    weights.place("").0.hash(&mut hasher);
    weights.targets.hash(&mut hasher);
    format!("{:016x}-{}.safetensors", hasher.finish(), to.name())
}

fn write(
    path: &Path,
    weights: &QuantizedWeights<'_>,
    to: QuantizeTo,
    stamp: String,
    progress: &dyn Progress,
) -> Result<(), CacheError> {
    let failure = RefCell::new(None);
    let mut matrices = Vec::new();
    let mut total = 0;
    for (name, format) in weights.targets {
        let rows = weights.header(name).and_then(|header| header.shape.first().copied()).unwrap_or(0);
        let cols = weights.header(name).and_then(|header| header.shape.last().copied()).unwrap_or(0);
        let shape = [rows, format.bytes_for(1, cols).unwrap_or(0)];
        total += (shape[0] * shape[1]) as u64;
        matrices.push((name.as_str(), Matrix { weights, name, shape, progress, failure: &failure }));
    }
    progress.stage(&format!("quantizing weights to {}", to.name()), total);
    let metadata = HashMap::from([(STAMP.to_owned(), stamp)]);
    let failed = |source| CacheError::Write { path: path.to_owned(), source };
    let drafts = draft_folder(path.parent().unwrap_or(Path::new(".")));
    fs::create_dir_all(&drafts).map_err(failed)?;
    let draft = drafts.join(path.file_name().unwrap_or_default());
    let written = serialize_to_file(matrices, Some(metadata), &draft).map_err(|error| match error {
        SafeTensorError::IoError(source) => source,
        other => io::Error::other(other),
    });
    progress.finish();
    let kept = match failure.take() {
        Some(error) => Err(error.into()),
        None => written.and_then(|()| publish(&draft, path)).map_err(failed),
    };
    // What a failure left goes with it. A folder in which another model is being written stays.
    let _ = fs::remove_file(&draft);
    let _ = fs::remove_dir(&drafts);
    kept
}

/// Gives a finished file its name once it is on the disk: after a power failure there is all of it or nothing.
fn publish(draft: &Path, path: &Path) -> io::Result<()> {
    fs::File::open(draft)?.sync_all()?;
    fs::rename(draft, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// A matrix that is quantised when the writer comes to it, so that one at a time is in memory.
struct Matrix<'a> {
    weights: &'a QuantizedWeights<'a>,
    name: &'a str,
    shape: [usize; 2],
    progress: &'a dyn Progress,
    /// The writer takes no errors: the first one is kept here, and the file is thrown away.
    failure: &'a RefCell<Option<WeightsError>>,
}

impl View for Matrix<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let is_over = self.failure.borrow().is_some();
        let blocks = match self.progress.is_cancelled() {
            _ if is_over => None,
            true => Some(Err(WeightsError::Cancelled)),
            false => Some(self.weights.read(self.name, Shard::Whole)),
        };
        self.progress.advance(self.data_len() as u64);
        match blocks {
            Some(Ok(MappedBytes::Owned(blocks))) => return Cow::Owned(blocks),
            Some(Ok(blocks)) => return Cow::Owned(blocks.to_vec()),
            Some(Err(error)) => *self.failure.borrow_mut() = Some(error),
            None => {}
        }
        Cow::Owned(vec![0; self.data_len()])
    }

    fn data_len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// Removes what killed programs left half-written: the folder belongs to one running program, by its data directory's lock.
fn remove_abandoned(folder: &Path) {
    let own = draft_folder(folder);
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_draft = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAFTS));
        if is_draft && path != own {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Where this program writes before it publishes.
fn draft_folder(folder: &Path) -> PathBuf {
    folder.join(format!("{DRAFTS}{}", std::process::id()))
}
