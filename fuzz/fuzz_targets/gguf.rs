//! Any bytes give a file or a typed error; a file can be read in all its parts and written again.

#![no_main]

use std::hint::black_box;

use breakers_gguf::{File, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match File::from_bytes(bytes.to_vec()) {
        Ok(file) => {
            walk(&file);
            rewrite(&file);
        }
        Err(error) => {
            black_box(error.to_string());
        }
    }
});

fn walk(file: &File) {
    let metadata = file.metadata();
    for (key, value) in metadata.iter() {
        assert_eq!(metadata.get(key).map(|same| same.type_name()), Some(value.type_name()));
        black_box((metadata.str(key).is_ok(), metadata.bool(key).is_ok(), metadata.u32(key).is_ok()));
        black_box((metadata.i64(key).is_ok(), metadata.u64s(key).is_ok(), metadata.i32s(key).is_ok()));
        black_box((metadata.f32(key).is_ok(), metadata.f32s(key).is_ok()));
        if let Ok(Some(strings)) = metadata.strings(key) {
            black_box(strings.iter().map(str::len).sum::<usize>());
        }
        black_box(format!("{value:?}"));
    }
    for tensor in file.tensors() {
        let mut row = vec![0.0; tensor.n_cols()];
        for row_idx in [0, tensor.n_rows() - 1] {
            let bytes = tensor.row(row_idx).expect("the row exists");
            tensor.format().decode_row(bytes, &mut row).expect("the header was checked");
        }
        assert_eq!(tensor.to_f32().len(), tensor.n_values());
    }
}

fn rewrite(file: &File) {
    let mut plan = Writer::with_metadata(file.metadata().clone());
    for tensor in file.tensors() {
        if plan.declare(tensor.name(), tensor.format(), tensor.shape()).is_err() {
            return; // a name too long for other readers
        }
    }
    // An alignment of gigabytes is legal; nobody needs to see the zeros written.
    if file.metadata().u32("general.alignment").expect("checked").is_some_and(|n| n > 1 << 16) {
        return;
    }
    let mut writer = plan.write_to(Vec::new()).expect("what was read can be written");
    for tensor in file.tensors() {
        writer.write(tensor.name(), tensor.bytes()).expect("the declared bytes");
    }
    let bytes = writer.finish().expect("all tensors are there");
    let again = File::from_bytes(bytes).expect("what was written can be read");
    assert_eq!(format!("{:?}", again.metadata()), format!("{:?}", file.metadata()));
    assert_eq!(again.tensors().len(), file.tensors().len());
    for (read, original) in again.tensors().zip(file.tensors()) {
        assert_eq!((read.name(), read.format(), read.shape()), (original.name(), original.format(), original.shape()));
        assert_eq!(read.bytes(), original.bytes());
    }
}
