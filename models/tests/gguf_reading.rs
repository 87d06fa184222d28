//! Our GGUF reader against candle's, and against files written by hand.

use std::fs::{self, File};

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use millgate_kernels::quant::dequantise_row;
use millgate_models::weights::{FileBytes, GgufArray, GgufFile, GgufValue, TensorFormat, WeightsError};
use proptest::prelude::*;

use crate::rig::testdata;

#[test]
fn candle_reads_the_same_tensors_and_values_from_every_file() {
    let mut files = 0;
    for entry in fs::read_dir(testdata("gguf")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        files += 1;
        let ours = GgufFile::parse(FileBytes::open(&path).unwrap()).unwrap();
        let mut file = File::open(&path).unwrap();
        let theirs = Content::read(&mut file).unwrap();
        assert_eq!(ours.tensors().len(), theirs.tensor_infos.len());
        assert_eq!(ours.metadata().len(), theirs.metadata.len());
        for (name, tensor) in ours.tensors() {
            let expected = theirs.tensor(&mut file, name, &Device::Cpu).unwrap();
            assert_eq!(tensor.shape, expected.shape().dims(), "{name}");
            let expected: Vec<f32> =
                expected.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let TensorFormat::Known(format) = tensor.format else { panic!("{name} has no known format") };
            let mut found = vec![0.0; expected.len()];
            dequantise_row(format, &ours.tensor_bytes(tensor).unwrap(), &mut found).unwrap();
            let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest < 1e-6, "{} `{name}`: {largest}", path.display());
        }
    }
    assert!(files >= 10);
}

/// Writes the pieces of a GGUF file.
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn new(version: u32, tensors: u64, values: u64) -> Self {
        let mut writer = Self { bytes: b"GGUF".to_vec() };
        writer.bytes.extend(version.to_le_bytes());
        writer.bytes.extend(tensors.to_le_bytes());
        writer.bytes.extend(values.to_le_bytes());
        writer
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self
    }

    fn value(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.text(key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self
    }

    fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.text(name);
        self.bytes.extend((dimensions.len() as u32).to_le_bytes());
        for size in dimensions {
            self.bytes.extend(size.to_le_bytes());
        }
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self
    }

    fn data(&mut self, alignment: usize, data: &[u8]) -> &mut Self {
        let start = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(start, 0);
        self.bytes.extend(data);
        self
    }

    fn parse(&self) -> Result<GgufFile, WeightsError> {
        GgufFile::parse(FileBytes::from_memory("by-hand.gguf", self.bytes.clone()))
    }

    fn refusal(&self) -> String {
        self.parse().unwrap_err().to_string()
    }
}

#[test]
fn every_kind_of_metadata_is_read() {
    let mut writer = Writer::new(2, 0, 10);
    writer.value("u8", 0, &[200]).value("i8", 1, &[200]);
    writer.value("i16", 3, &(-300_i16).to_le_bytes()).value("u64", 10, &u64::MAX.to_le_bytes());
    writer.value("f32", 6, &1.5_f32.to_le_bytes()).value("f64", 12, &2.5_f64.to_le_bytes());
    writer.value("bool", 7, &[1]);
    let text = [3_u64.to_le_bytes().as_slice(), "äb".as_bytes()].concat();
    writer.value("text", 8, &text);
    let texts = [8_u32.to_le_bytes().as_slice(), &2_u64.to_le_bytes(), &text, &text].concat();
    writer.value("texts", 9, &texts);
    let nested = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes(), &texts].concat();
    writer.value("nested", 9, &nested);
    let file = writer.parse().unwrap();
    let value = |key: &str| file.value(key).unwrap();
    assert_eq!(value("u8").as_u64(), Some(200));
    assert_eq!(value("i8"), &GgufValue::Signed(-56));
    assert_eq!(value("i16"), &GgufValue::Signed(-300));
    assert_eq!(value("u64").as_u64(), Some(u64::MAX));
    assert_eq!(value("f32").as_f64(), Some(1.5));
    assert_eq!(value("f64").as_f64(), Some(2.5));
    assert_eq!(value("bool").as_bool(), Some(true));
    assert_eq!(value("text").as_str(), Some("äb"));
    assert_eq!(value("texts").as_strings().unwrap().len(), 2);
    assert!(matches!(value("nested"), GgufValue::Array(GgufArray::Array(arrays)) if arrays.len() == 1));
}

#[test]
fn the_alignment_that_the_file_names_is_used() {
    let mut writer = Writer::new(3, 1, 1);
    writer.value("general.alignment", 4, &256_u32.to_le_bytes());
    writer.tensor("a", &[2], 0, 256);
    let data = [vec![0; 256], [1.0_f32, 2.0].map(f32::to_le_bytes).concat()].concat();
    writer.data(256, &data);
    let file = writer.parse().unwrap();
    let tensor = &file.tensors()["a"];
    assert_eq!(&file.tensor_bytes(tensor).unwrap()[..], [1.0_f32, 2.0].map(f32::to_le_bytes).concat());
}

#[test]
fn what_we_do_not_read_is_refused_by_name() {
    assert!(Writer { bytes: b"GGML....".to_vec() }.refusal().contains("does not begin with `GGUF`"));
    assert!(Writer::new(1, 0, 0).refusal().contains("GGUF version 1, 2 and 3 are supported"));
    assert!(Writer::new(3_u32.swap_bytes(), 0, 0).refusal().contains("big endian"));
    let mut writer = Writer::new(3, 0, 1);
    writer.value("split.count", 2, &3_u16.to_le_bytes());
    assert!(writer.refusal().contains("3 parts of a split model"));
    let mut writer = Writer::new(3, 0, 1);
    writer.value("general.alignment", 4, &3_u32.to_le_bytes());
    assert!(writer.refusal().contains("general.alignment"));
    let mut writer = Writer::new(3, 0, 1);
    writer.value("odd", 13, &[0; 8]);
    assert!(writer.refusal().contains("metadata type 13"));
}

#[test]
fn tensors_that_do_not_fit_the_file_are_refused_by_name() {
    let cases: [(&[u64], u32, u64, &str); 7] = [
        (&[u64::MAX, 2], 0, 0, "has shape"),
        (&[1 << 62, 4], 0, 0, "has shape"),
        (&[33], 8, 0, "has shape [33], which Q8_0 cannot hold"),
        (&[64], 0, 0, "beyond the end of the file"),
        (&[2], 0, u64::MAX - 31, "beyond the end of the file"),
        (&[2], 0, 3, "not aligned"),
        (&[1, 1, 1, 1, 1], 0, 0, "5 dimensions"),
    ];
    for (dimensions, kind, offset, reason) in cases {
        let mut writer = Writer::new(3, 1, 0);
        writer.tensor("blk.0.x", dimensions, kind, offset).data(32, &[0; 64]);
        let refusal = writer.refusal();
        assert!(refusal.contains(reason) && refusal.contains("`blk.0.x`") && refusal.contains("by-hand"), "{refusal}");
    }
    let mut writer = Writer::new(3, 2, 0);
    writer.tensor("twice", &[2], 0, 0).tensor("twice", &[2], 0, 0).data(32, &[0; 64]);
    assert!(writer.refusal().contains("`twice` appears twice"));
    for (tensors, values) in [(u64::MAX, 0), (0, u64::MAX), (1 << 30, 0), (1, 1 << 40)] {
        let mut writer = Writer::new(3, tensors, values);
        writer.data(32, &[0; 4096]);
        assert!(writer.refusal().contains("are announced"));
    }
}

#[test]
fn a_tensor_of_a_type_that_we_lack_is_listed_and_only_refused_when_needed() {
    let mut writer = Writer::new(3, 1, 0);
    writer.tensor("token_embd.weight", &[32, 4], 20, 0).data(32, &[0; 128]);
    let file = writer.parse().unwrap();
    assert_eq!(file.tensors()["token_embd.weight"].format, TensorFormat::Other("IQ4_NL".into()));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(tail in proptest::collection::vec(any::<u8>(), 0..400), tensors in 0_u64..4, values in 0_u64..4) {
        let mut writer = Writer::new(3, tensors, values);
        writer.bytes.extend(&tail);
        let _ = writer.parse();
    }
}
