//! A small valid file with every type of value and several formats, and a walk over all of a file.

use std::hint::black_box;

use breakers_gguf as gguf;
use breakers_gguf::Format;

/// Names, formats and shapes of the tensors of [`file`].
pub(crate) const TENSORS: [(&str, Format, &[usize]); 5] = [
    ("token_embd.weight", Format::Q8_0, &[3, 64]),
    ("output_norm.weight", Format::F32, &[5]),
    ("blk.0.ffn_up.weight", Format::Q4_1, &[2, 32]),
    ("blk.0.experts", Format::Q6_K, &[1, 1, 1, 256]),
    ("last", Format::BF16, &[2, 1, 3]),
];

pub(crate) fn metadata() -> gguf::Metadata {
    let mut metadata = gguf::Metadata::new();
    let pairs: [(&str, gguf::Value); 20] = [
        ("general.architecture", "llama".into()),
        ("general.alignment", 16u32.into()),
        ("empty", "".into()),
        ("u8", 255u8.into()),
        ("i8", (-128i8).into()),
        ("u16", 65_535u16.into()),
        ("i16", (-5i16).into()),
        ("i32", (-70_000i32).into()),
        ("f32", 1.5e-5f32.into()),
        ("bool", true.into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f64", std::f64::consts::PI.into()),
        ("tokens", vec!["<s>", "", " the", "é", "日本"].into()),
        ("scores", vec![0.0f32, -1.0, -2.5].into()),
        ("types", vec![1i32, 3, 6].into()),
        ("bools", vec![true, false].into()),
        ("bytes", vec![1u8, 2, 3].into()),
        ("doubles", vec![0.1f64].into()),
        ("nothing", Vec::<u64>::new().into()),
    ];
    for (key, value) in pairs {
        metadata.insert(key, value).unwrap();
    }
    metadata
}

pub(crate) fn file() -> Vec<u8> {
    let mut plan = gguf::Writer::with_metadata(metadata());
    for (name, format, shape) in TENSORS {
        plan.declare(name, format, shape).unwrap();
    }
    let mut writer = plan.write_to(Vec::new()).unwrap();
    for (seed, (name, format, shape)) in TENSORS.into_iter().enumerate() {
        let n_bytes = shape.iter().product::<usize>() / format.block_size() * format.block_bytes();
        let bytes: Vec<u8> = (0..n_bytes).map(|i| (i * 37 + seed * 11) as u8).collect();
        writer.write(name, &bytes).unwrap();
    }
    writer.finish().unwrap()
}

/// Reads everything that a file offers.
pub(crate) fn walk(file: &gguf::File) {
    let metadata = file.metadata();
    for (key, value) in metadata.iter() {
        black_box(format!("{key} {value:?}"));
        // The typed getters either fit or refuse.
        black_box((metadata.str(key).is_ok(), metadata.u32(key).is_ok(), metadata.u64s(key).is_ok()));
        black_box((metadata.f32(key).is_ok(), metadata.f32s(key).is_ok(), metadata.i32s(key).is_ok()));
        if let Ok(Some(strings)) = metadata.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
            assert!((0..strings.len()).all(|index| strings.get(index).is_some()));
        }
    }
    for tensor in file.tensors() {
        assert_eq!(file.require(tensor.name()).unwrap().bytes(), tensor.bytes());
        let mut row = vec![0.0; tensor.n_cols()];
        for row_idx in [0, tensor.n_rows() - 1] {
            tensor.format().decode_row(tensor.row(row_idx).unwrap(), &mut row).unwrap();
        }
        assert!(tensor.row(tensor.n_rows()).is_none());
    }
}
