//! What is written is read back.

use std::collections::BTreeMap;

use breakers_gguf::{Array, Error, File, Format, Metadata, Value, Writer};
use proptest::prelude::*;

use crate::{models::model_path, sample};

fn many<T: std::fmt::Debug>(element: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(element, 0..9)
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        many(any::<u8>()).prop_map(Value::from),
        many(any::<i8>()).prop_map(Value::from),
        many(any::<u16>()).prop_map(Value::from),
        many(any::<i16>()).prop_map(Value::from),
        many(any::<u32>()).prop_map(Value::from),
        many(any::<i32>()).prop_map(Value::from),
        many(any::<u64>()).prop_map(Value::from),
        many(any::<i64>()).prop_map(Value::from),
        many(any::<f32>()).prop_map(Value::from),
        many(any::<f64>()).prop_map(Value::from),
        many(any::<bool>()).prop_map(Value::from),
        many(any::<String>()).prop_map(Value::from),
    ]
}

#[derive(Debug, Clone)]
struct Tensor {
    format: Format,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn tensor() -> impl Strategy<Value = Tensor> {
    let shape = (prop::collection::vec(1usize..4, 0..4), 1usize..4);
    (prop::sample::select(Format::ALL.to_vec()), shape, any::<u8>()).prop_map(
        |(format, (mut shape, n_blocks), seed)| {
            let n_bytes = shape.iter().product::<usize>() * n_blocks * format.block_bytes();
            shape.push(n_blocks * format.block_size());
            let bytes = (0..n_bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            Tensor { format, shape, bytes }
        },
    )
}

fn write(metadata: &Metadata, tensors: &BTreeMap<String, Tensor>, piece: usize) -> Vec<u8> {
    let mut plan = Writer::with_metadata(metadata.clone());
    for (name, tensor) in tensors {
        plan.declare(name, tensor.format, &tensor.shape).unwrap();
    }
    let mut writer = plan.write_to(Vec::new()).unwrap();
    for (name, tensor) in tensors {
        for bytes in tensor.bytes.chunks(piece) {
            writer.write(name, bytes).unwrap();
        }
    }
    writer.finish().unwrap()
}

/// Equality of values, with floating-point numbers compared by their bits.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::F32(l), Value::F32(r)) => l.to_bits() == r.to_bits(),
        (Value::F64(l), Value::F64(r)) => l.to_bits() == r.to_bits(),
        (Value::Array(Array::F32(l)), Value::Array(Array::F32(r))) => {
            l.iter().map(|v| v.to_bits()).eq(r.iter().map(|v| v.to_bits()))
        }
        (Value::Array(Array::F64(l)), Value::Array(Array::F64(r))) => {
            l.iter().map(|v| v.to_bits()).eq(r.iter().map(|v| v.to_bits()))
        }
        _ => left == right,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_written_is_read_back(
        pairs in prop::collection::vec(("[a-z0-9_.]{1,20}|\\PC{0,9}", value()), 0..12),
        tensors in prop::collection::btree_map("[a-z.]{0,12}", tensor(), 0..6),
        alignment in prop::option::of(0u32..8),
        piece in 1usize..200,
    ) {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.insert(&key, value).unwrap();
        }
        if let Some(power) = alignment {
            metadata.insert("general.alignment", 1u32 << power).unwrap();
        }
        let bytes = write(&metadata, &tensors, piece);
        prop_assert_eq!(bytes.len() % alignment.map_or(32, |power| 1 << power), 0);
        let file = File::from_bytes(bytes.clone()).unwrap();
        prop_assert_eq!(file.version(), 3);
        prop_assert_eq!(file.len_bytes(), bytes.len());

        prop_assert_eq!(file.metadata().len(), metadata.len());
        for ((key, value), (read_key, read)) in metadata.iter().zip(file.metadata().iter()) {
            prop_assert_eq!(key, read_key);
            prop_assert!(same(value, read), "{}: {:?} became {:?}", key, value, read);
            prop_assert!(same(value, file.metadata().get(key).unwrap()));
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for ((name, tensor), read) in tensors.iter().zip(file.tensors()) {
            prop_assert_eq!(read.name(), name);
            prop_assert_eq!(read.format(), tensor.format);
            prop_assert_eq!(read.shape(), &tensor.shape[..]);
            prop_assert_eq!(read.bytes(), &tensor.bytes[..]);
            prop_assert_eq!(read.n_rows() * read.n_cols(), read.n_values());
            prop_assert_eq!(read.to_f32().len(), read.n_values());
        }
        sample::walk(&file);
        prop_assert_eq!(write(file.metadata(), &tensors, 7), bytes);
    }
}

#[test]
fn a_slab_is_one_matrix_of_a_stack() {
    let bytes = |n: usize, seed: usize| (0..n).map(|i| (i * 37 + seed) as u8).collect::<Vec<u8>>();
    let stack = Tensor { format: Format::Q8_0, shape: vec![3, 2, 64], bytes: bytes(3 * 2 * 2 * 34, 5) };
    let matrix = Tensor { format: Format::F32, shape: vec![3, 4], bytes: bytes(48, 1) };
    let tensors = BTreeMap::from([("experts".to_owned(), stack.clone()), ("matrix".to_owned(), matrix)]);
    let file = File::from_bytes(write(&Metadata::new(), &tensors, 1000)).unwrap();
    let whole = file.require("experts").unwrap();
    let values = whole.to_f32();
    for at in 0..3 {
        let slab = whole.slab(at).unwrap();
        assert_eq!((slab.shape(), slab.n_rows(), slab.n_cols(), slab.n_values()), (&[2, 64][..], 2, 64, 128));
        assert_eq!(slab.bytes(), &stack.bytes[at * 136..(at + 1) * 136]);
        assert_eq!(slab.row(1), Some(&stack.bytes[at * 136 + 68..(at + 1) * 136]));
        assert_eq!(slab.row(2), None);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&slab.to_f32()), bits(&values[at * 128..(at + 1) * 128]));
        let shared = slab.to_shared();
        assert_eq!((shared.view().shape(), shared.view().bytes()), (slab.shape(), slab.bytes()));
        slab.advise_done();
        slab.advise_done_with(0..usize::MAX);
        assert!(slab.slab(0).is_none());
    }
    assert!(whole.slab(3).is_none());
    assert!(file.require("matrix").unwrap().slab(0).is_none());
}

#[test]
fn removed_and_replaced_pairs() {
    let mut metadata = sample::metadata();
    let n_pairs = metadata.len();
    assert_eq!(metadata.remove("u8"), Some(Value::U8(255)));
    assert_eq!(metadata.remove("u8"), None);
    metadata.insert("empty", "full").unwrap();
    assert_eq!(metadata.len(), n_pairs - 1);
    assert_eq!(metadata.iter().nth(2), Some(("empty", &Value::from("full"))));
    for (key, value) in sample::metadata().iter().filter(|(key, _)| !["u8", "empty"].contains(key)) {
        assert_eq!(metadata.get(key), Some(value));
    }
}

#[test]
fn typed_access() {
    let file = File::from_bytes(sample::file()).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata, &sample::metadata());
    assert_eq!(metadata.require_u32("u8").unwrap(), 255);
    assert_eq!(metadata.require_i64("i8").unwrap(), -128);
    assert_eq!(metadata.require_u64("u64").unwrap(), u64::MAX);
    assert_eq!(metadata.require_f32("f64").unwrap(), std::f32::consts::PI);
    assert!(metadata.require_bool("bool").unwrap());
    assert_eq!(metadata.require_strings("tokens").unwrap().get(4), Some("日本"));
    assert_eq!(metadata.u32s("types").unwrap().unwrap(), [1u32, 3, 6].as_slice());
    assert_eq!(metadata.i32s("bytes").unwrap().unwrap(), [1, 2, 3].as_slice());
    assert_eq!(metadata.f32s("doubles").unwrap().unwrap(), [0.1f32].as_slice());
    assert_eq!(metadata.u64s("nothing").unwrap().unwrap().len(), 0);
    assert_eq!(metadata.str("absent").unwrap(), None);
    assert!(matches!(metadata.require_str("absent"), Err(Error::MissingKey { key }) if key == "absent"));
    assert!(matches!(metadata.u32("u64"), Err(Error::ValueRange { expected: "u32", .. })));
    assert!(matches!(metadata.u32("i32"), Err(Error::ValueRange { found: -70_000, .. })));
    assert!(matches!(metadata.i64("u64"), Err(Error::ValueRange { .. })));
    assert!(matches!(
        metadata.u32("f32"),
        Err(Error::ValueType { expected: "an integer", found: "f32", .. })
    ));
    assert!(matches!(metadata.f32("u8"), Err(Error::ValueType { .. })));
    assert!(matches!(metadata.bool("u8"), Err(Error::ValueType { .. })));
    assert!(matches!(metadata.strings("types"), Err(Error::ValueType { found: "an array of i32", .. })));
    assert!(matches!(metadata.u32s("scores"), Err(Error::ValueType { .. })));
    assert!(matches!(metadata.u32s("u8"), Err(Error::ValueType { .. })));
    assert!(matches!(file.require("absent"), Err(Error::MissingTensor { tensor }) if tensor == "absent"));
}

#[test]
fn wrong_plans_and_orders_are_refused() {
    let mut plan = Writer::new();
    plan.declare("a", Format::Q8_0, &[2, 32]).unwrap();
    plan.declare("b", Format::F16, &[1]).unwrap();
    let refused = |plan: &mut Writer, name: &str, format, shape: &[usize]| {
        plan.declare(name, format, shape).unwrap_err()
    };
    assert!(matches!(refused(&mut plan, "a", Format::F32, &[1]), Error::DuplicateTensor { .. }));
    assert!(matches!(refused(&mut plan, "c", Format::F32, &[]), Error::InvalidDimensions { .. }));
    assert!(matches!(refused(&mut plan, "c", Format::F32, &[1; 5]), Error::InvalidDimensions { .. }));
    assert!(matches!(refused(&mut plan, "c", Format::F32, &[2, 0]), Error::InvalidDimensions { .. }));
    assert!(matches!(
        refused(&mut plan, "c", Format::Q4_0, &[usize::MAX, 32]),
        Error::InvalidDimensions { .. }
    ));
    assert!(matches!(refused(&mut plan, "c", Format::Q4_0, &[40]), Error::TensorRowLength { .. }));
    let long = "x".repeat(64);
    assert!(matches!(
        refused(&mut plan, &long, Format::F32, &[1]),
        Error::TensorName { found: 64, limit: 63, .. }
    ));
    assert!(matches!(plan.insert(&"k".repeat(65_536), 1u8), Err(Error::CountTooLarge { .. })));

    let mut writer = plan.clone().write_to(Vec::new()).unwrap();
    assert!(
        matches!(writer.write("b", &[0; 2]), Err(Error::TensorOrder { expected, found }) if expected == "a" && found == "b")
    );
    assert!(matches!(writer.write("a", &[0; 69]), Err(Error::Length { expected: 68, found: 69, .. })));
    writer.write("a", &[0; 60]).unwrap();
    assert!(matches!(writer.write("a", &[0; 9]), Err(Error::Length { expected: 8, found: 9, .. })));
    writer.write("a", &[0; 8]).unwrap();
    writer.write("b", &[0; 1]).unwrap();
    assert!(matches!(writer.finish(), Err(Error::Length { expected: 2, found: 1, .. })));

    let mut writer = plan.clone().write_to(Vec::new()).unwrap();
    writer.write("a", &[0; 68]).unwrap();
    writer.write("b", &[0; 2]).unwrap();
    assert!(
        matches!(writer.write("b", &[0]), Err(Error::TensorOrder { expected, .. }) if expected.is_empty())
    );
    assert!(File::from_bytes(writer.finish().unwrap()).is_ok());

    plan.insert("general.alignment", 12u32).unwrap();
    assert!(matches!(plan.write_to(Vec::new()), Err(Error::InvalidAlignment { found: 12 })));
}

#[test]
fn a_full_sink_is_an_error() {
    let mut plan = Writer::new();
    plan.declare("w", Format::F32, &[16]).unwrap();
    // Room for nothing, for the header alone, for part of the tensor.
    for (room, at_header) in [(0, true), (64, false), (100, false)] {
        let mut buffer = vec![0; room];
        match plan.clone().write_to(&mut buffer[..]) {
            Err(error) => assert!(at_header && matches!(error, Error::Write { .. }), "{room}: {error}"),
            Ok(mut writer) => {
                assert!(!at_header);
                assert!(matches!(writer.write("w", &[0; 64]), Err(Error::Write { .. })), "{room}");
            }
        }
    }
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let n_files = || std::fs::read_dir(folder.path()).unwrap().count();
    let plan = |value: u32| {
        let mut plan = Writer::new();
        plan.insert("value", value).unwrap();
        plan.declare("w", Format::F32, &[2]).unwrap();
        plan
    };

    let mut abandoned = plan(1).create(&path).unwrap();
    abandoned.write("w", &[0; 4]).unwrap();
    assert!(!path.exists());
    drop(abandoned);
    assert_eq!(n_files(), 0);

    let mut unfinished = plan(1).create(&path).unwrap();
    unfinished.write("w", &[0; 4]).unwrap();
    assert!(matches!(unfinished.finish(), Err(Error::Length { expected: 8, found: 4, .. })));
    assert_eq!(n_files(), 0);

    let mut first = plan(1).create(&path).unwrap();
    first.write("w", &[0; 8]).unwrap();
    first.finish().unwrap();
    assert_eq!(n_files(), 1);
    let open = File::open(&path).unwrap();

    // Replacing the file does not change existing mappings.
    let mut second = plan(2).create(&path).unwrap();
    second.write("w", &1.0f32.to_le_bytes().repeat(2)).unwrap();
    assert_eq!(File::open(&path).unwrap().metadata().require_u32("value").unwrap(), 1);
    second.finish().unwrap();
    assert_eq!(n_files(), 1);
    assert_eq!(open.require("w").unwrap().to_f32(), [0.0; 2]);
    let replaced = File::open(&path).unwrap();
    assert_eq!(replaced.metadata().require_u32("value").unwrap(), 2);
    assert_eq!(replaced.require("w").unwrap().to_f32(), [1.0; 2]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444 & !0o077, 0o400, "mode {mode:o}");
        assert_eq!(mode & 0o111, 0, "mode {mode:o}");
    }

    let nowhere = plan(1).create(folder.path().join("absent").join("model.gguf"));
    assert!(matches!(nowhere, Err(Error::Io { .. })));
}

#[test]
fn a_real_model_survives_being_rewritten() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let original = File::open(path).unwrap();
    assert_eq!(original.metadata().require_str("general.architecture").unwrap(), "llama");
    assert_eq!(original.metadata().require_strings("tokenizer.ggml.tokens").unwrap().len(), 49_152);
    assert_eq!(original.require("token_embd.weight").unwrap().shape(), [49_152, 576]);

    let folder = tempfile::tempdir().unwrap();
    let copy_path = folder.path().join("copy.gguf");
    let mut plan = Writer::with_metadata(original.metadata().clone());
    for tensor in original.tensors() {
        plan.declare(tensor.name(), tensor.format(), tensor.shape()).unwrap();
    }
    let mut copy = plan.create(&copy_path).unwrap();
    for tensor in original.tensors() {
        copy.write(tensor.name(), tensor.bytes()).unwrap();
    }
    copy.finish().unwrap();

    let copy = File::open(&copy_path).unwrap();
    assert_eq!(copy.metadata(), original.metadata());
    assert_eq!(copy.tensors().len(), original.tensors().len());
    for (copy, original) in copy.tensors().zip(original.tensors()) {
        assert_eq!(
            (copy.name(), copy.format(), copy.shape()),
            (original.name(), original.format(), original.shape())
        );
        assert!(copy.bytes() == original.bytes(), "{}", copy.name());
    }
    sample::walk(&copy);
}
