//! Quantization of whole models, on a tiny one with random weights.

use std::path::Path;
use std::sync::Arc;

use breakers_core::TokenId;
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, GroupFormat, MatrixFile};
use breakers_model::Error as ModelError;
use breakers_model::walk::BlockWalk;
use breakers_quant::Error;
use breakers_quant::job::{Plan, Progress, QuantizeOptions, Rotate, Sensitivities, parts_folder, quantize};
use breakers_quant::methods::{RoundToNearest, named};
use breakers_quant::quantizer::{Quantizer, WeightMatrix};

use crate::tiny_model::{BLOCKS, Random, TINY, Tiny, VOCABULARY, WIDTH, write_model};

pub(crate) fn text(n: usize, seed: u64) -> Vec<TokenId> {
    let mut random = Random::new(seed);
    (0..n).map(|_| ((random.next() + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32).collect()
}

/// Logits of a text, by the walk and a plain product.
pub(crate) fn logits(path: &Path) -> Vec<f32> {
    logits_with(path, None)
}

fn logits_with(path: &Path, matrices: Option<Arc<MatrixFile>>) -> Vec<f32> {
    let file = gguf::File::open(path).unwrap();
    let mut walk = BlockWalk::with_matrices(&file, matrices.clone(), vec![text(48, 9)]).unwrap();
    for block in 0..walk.n_blocks() {
        walk.run(&file, block, None, None, true, &mut |_| ()).unwrap();
    }
    let head = match matrices.filter(|store| store.contains("output.weight")) {
        Some(store) => store.matrix("output.weight").unwrap().to_f32(),
        None => file.require("output.weight").unwrap().to_f32(),
    };
    let mut out = Vec::new();
    walk.head_inputs(&file, |rows| {
        for row in rows.chunks_exact(WIDTH) {
            out.extend(head.chunks_exact(WIDTH).map(|h| h.iter().zip(row).map(|(a, b)| a * b).sum::<f32>()));
        }
        Ok(())
    })
    .unwrap();
    out
}

/// Squared differences over squares.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let wrong: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    wrong / a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

fn options(method: &str) -> QuantizeOptions {
    QuantizeOptions {
        window: 64,
        min_tokens: 256,
        ..QuantizeOptions::new(named(method).unwrap(), text(1024, 1))
    }
}

fn plan(path: &Path, encoding: impl Into<Encoding>) -> Plan {
    Plan::uniform(&gguf::File::open(path).unwrap(), encoding)
}

/// A plan for the matrices of the blocks; the tables keep their formats.
fn plan_of_blocks(path: &Path, encoding: impl Into<Encoding>) -> Plan {
    let encoding = encoding.into();
    Plan::by(&gguf::File::open(path).unwrap(), |name, from| match name.starts_with("blk.") {
        true => encoding,
        false => from.into(),
    })
}

#[test]
fn changes_of_basis_leave_the_model_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
    let awq = "awq";
    let plain = "rtn";
    // With as many value heads as query heads the output projection is scaled too. Of 16 bits nothing gets
    // lost; AWQ finds nothing to do there, so it gets 8, and what these and eight-bit inputs lose. A basis
    // that is changed on one side alone costs all.
    let (exact, bytes) = ((Format::F16, 1e-5), (Format::Q8_0, 5e-3));
    for (kv_heads, method, rotation, (format, tolerance)) in
        [(2, plain, FOLDED, exact), (2, awq, None, bytes), (4, awq, None, bytes), (4, awq, FOLDED, bytes)]
    {
        write_model(&source, Tiny { kv_heads, ..TINY });
        let options = QuantizeOptions { rotation, ..options(method) };
        let report = quantize(&source, &out, &plan(&source, format), &options, &mut |_| ()).unwrap();
        assert_eq!(report.tensors.len(), 2 + 7 * BLOCKS);
        let found = distance(&logits(&source), &logits(&out));
        assert!(found < tolerance, "{kv_heads} {method} {rotation:?}: {found}");
        assert_eq!(report.notes.is_empty(), kv_heads == 4 || method == plain);
        let norm =
            |path: &Path| gguf::File::open(path).unwrap().require("blk.1.ffn_norm.weight").unwrap().to_f32();
        assert!(distance(&norm(&source), &norm(&out)) > 1e-3, "the basis has changed");
    }
}

#[test]
fn methods_rank_on_whole_models() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
    write_model(&source, TINY);
    let expected = logits(&source);
    let error = |method, rotation| {
        let options = QuantizeOptions { rotation, ..options(method) };
        quantize(&source, &out, &plan(&source, Format::Q3_K), &options, &mut |_| ()).unwrap();
        distance(&expected, &logits(&out))
    };
    let plain = error("rtn", None);
    let weighted = error("imatrix", None);
    let awq = error("awq", None);
    let gptq = error("gptq", None);
    let rotated = error("gptq", FOLDED);
    assert!(
        weighted < plain && awq < plain && gptq < 0.8 * plain && rotated < plain,
        "{plain} {weighted} {awq} {gptq} {rotated}"
    );
}

/// Tensors of the output, and notes of the report.
fn tied(source: &Path, out: &Path, options: &QuantizeOptions) -> (Vec<String>, Vec<String>) {
    let report = quantize(source, out, &plan(source, Format::Q8_0), options, &mut |_| ()).unwrap();
    let file = gguf::File::open(out).unwrap();
    (file.tensors().map(|view| view.name().to_owned()).collect(), report.notes)
}

#[test]
fn tables_that_are_the_same_numbers_become_one() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
    let options = QuantizeOptions { tie: true, ..options("rtn") };
    // The tiny model's two tables are unrelated.
    write_model(&source, TINY);
    let (names, notes) = tied(&source, &out, &options);
    assert!(names.contains(&"output.weight".to_owned()) && notes.len() == 1, "{notes:?}");
    // A copy of the head, rounded to four bits, as embeddings.
    let original = gguf::File::open(&source).unwrap();
    let head = original.require("output.weight").unwrap();
    let values = head.to_f32();
    let weights = WeightMatrix::new(&values, head.n_rows(), head.n_cols()).unwrap();
    let rounded = RoundToNearest::new().quantize(&weights, Format::Q4_K.into(), None).unwrap();
    let same = folder.path().join("same.gguf");
    let mut writer = gguf::Writer::with_metadata(original.metadata().clone());
    let format = |name: &str| if name == "token_embd.weight" { Format::Q4_K } else { Format::F32 };
    for view in original.tensors() {
        writer.declare(view.name(), format(view.name()), view.shape()).unwrap();
    }
    let mut sink = writer.create(&same).unwrap();
    for view in original.tensors() {
        let is_table = view.name() == "token_embd.weight";
        sink.write(view.name(), if is_table { rounded.matrix.blocks().unwrap() } else { view.bytes() })
            .unwrap();
    }
    sink.finish().unwrap();
    let (names, notes) = tied(&same, &out, &options);
    assert!(!names.contains(&"output.weight".to_owned()) && notes.is_empty(), "{notes:?}");
    let table = gguf::File::open(&out).unwrap().require("token_embd.weight").unwrap().to_f32();
    assert!(distance(&values, &table) < 1e-4, "the table is the head's, in its format");
    // A rotation takes a norm into the head alone.
    let (names, notes) = tied(&same, &out, &QuantizeOptions { rotation: FOLDED, ..options });
    assert!(names.contains(&"output.weight".to_owned()) && notes.len() == 1, "{notes:?}");
}

const FOLDED: Option<Rotate> = Some(Rotate::Folded { seed: 5 });
const ONLINE: Option<Rotate> = Some(Rotate::Online { seed: 5 });
const INT4: GroupFormat = GroupFormat::Affine { bits: 4, group: 64 };

#[test]
fn formats_that_gguf_lacks_lie_over_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("over.safetensors"));
    write_model(&source, TINY);
    let gptq = options("gptq");
    for (format, tolerance) in
        [(INT4, 0.05), (GroupFormat::Symmetric { bits: 3, group: 32 }, 0.4), (GroupFormat::Nf4, 0.05)]
    {
        quantize(&source, &out, &plan_of_blocks(&source, format), &gptq, &mut |_| ()).unwrap();
        let store = Arc::new(MatrixFile::open(&out).unwrap());
        // The tables, norms and biases are as they were.
        assert_eq!(store.names().count(), 7 * BLOCKS);
        let off = distance(&logits(&source), &logits_with(&source, Some(store)));
        assert!(off > 1e-6 && off < tolerance, "{}: {off}", format.name());
    }
}

#[test]
fn changes_of_basis_lie_over_the_source_too() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("over.safetensors"));
    let eight = GroupFormat::Symmetric { bits: 8, group: 32 };
    let awq = "awq";
    let gptq = "gptq";
    let gemma = Tiny { architecture: "gemma3", ..TINY };
    // What lies over the source: matrices alone; with the norms of both parts; with all norms and both
    // tables.
    let (matrices, norms) = (7 * BLOCKS, 2 * BLOCKS);
    for (tiny, method, rotation, n_tensors) in [
        (TINY, gptq, FOLDED, matrices + norms + 3),
        (TINY, awq, None, matrices + norms),
        (TINY, awq, FOLDED, matrices + norms + 3),
        (TINY, gptq, ONLINE, matrices),
        (TINY, awq, ONLINE, matrices + norms),
        // Norms behind the matrices: their inputs are rotated as they run.
        (gemma, gptq, FOLDED, matrices),
        (gemma, awq, FOLDED, matrices + norms),
    ] {
        write_model(&source, tiny);
        let options = QuantizeOptions { rotation, ..options(method) };
        quantize(&source, &out, &plan_of_blocks(&source, eight), &options, &mut |_| ()).unwrap();
        let store = Arc::new(MatrixFile::open(&out).unwrap());
        let (name, architecture) = (method, tiny.architecture);
        assert_eq!(store.names().count(), n_tensors, "{name} {rotation:?} {architecture}");
        let query = store.matrix("blk.0.attn_q.weight").unwrap();
        let is_online = rotation == ONLINE || (rotation == FOLDED && architecture == "gemma3");
        assert_eq!(query.rotation_seed(), is_online.then_some(5));
        // The same function, but for eight bits of weights and inputs, of which norms behind the matrices
        // make more.
        let tolerance = if architecture == "gemma3" { 2e-2 } else { 5e-3 };
        let off = distance(&logits(&source), &logits_with(&source, Some(store)));
        assert!(off > 1e-7 && off < tolerance, "{name} {rotation:?} {architecture}: {off}");
    }
}

#[test]
fn hqq_is_nearer_in_its_own_norm_and_refuses_what_has_no_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("over.safetensors"));
    write_model(&source, TINY);
    let hqq = options("hqq");
    let report = quantize(&source, &out, &plan_of_blocks(&source, INT4), &hqq, &mut |_| ()).unwrap();
    assert_eq!(report.n_tokens, 0);
    let original = gguf::File::open(&source).unwrap();
    let absolute = |store: &MatrixFile| -> f64 {
        let differences = |name: &str| -> f64 {
            let found = store.matrix(name).unwrap().to_f32();
            let expected = original.require(name).unwrap().to_f32();
            expected.iter().zip(found).map(|(a, b)| f64::from((a - b).abs()).powf(0.7)).sum()
        };
        store.names().map(differences).sum()
    };
    let found = absolute(&MatrixFile::open(&out).unwrap());
    let nearest = options("rtn");
    quantize(&source, &out, &plan_of_blocks(&source, INT4), &nearest, &mut |_| ()).unwrap();
    let plain = absolute(&MatrixFile::open(&out).unwrap());
    assert!(found < plain, "{found} {plain}");
    let nf4 = plan_of_blocks(&source, GroupFormat::Nf4);
    let found = quantize(&source, &out, &nf4, &hqq, &mut |_| ());
    let Err(Error::Tensor { source: found, .. }) = found else { panic!("{found:?}") };
    let found = found.downcast_ref::<Error>();
    assert!(matches!(found, Some(Error::Unsuited { method, .. }) if method == "hqq"), "{found:?}");
}

#[test]
fn budgets_are_divided_among_formats_of_all_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("over.safetensors"));
    write_model(&source, TINY);
    let file = gguf::File::open(&source).unwrap();
    let among = [Encoding::from(Format::Q2_K), INT4.into(), GroupFormat::Nf4.into(), Format::Q8_0.into()];
    let found = Sensitivities::measure(&file, vec![text(64, 3)], &among, &mut |_, _| ()).unwrap();
    let in_blocks = |plan: &Plan| -> usize {
        plan.iter()
            .filter(|(name, _)| name.starts_with("blk."))
            .map(|(name, encoding)| {
                let view = file.require(name).unwrap();
                encoding.matrix_bytes(view.n_rows(), view.n_cols()).unwrap()
            })
            .sum()
    };
    let least = in_blocks(&plan_of_blocks(&source, Format::Q2_K));
    let most = in_blocks(&plan_of_blocks(&source, Format::Q8_0));
    let budget = (least + most) / 2;
    let plan = found.allocate(&file, budget as u64).unwrap();
    assert!(in_blocks(&plan) <= budget && in_blocks(&plan) > least);
    let kinds: std::collections::BTreeSet<String> =
        plan.iter().filter(|(name, _)| name.starts_with("blk.")).map(|(_, e)| e.name()).collect();
    assert!(kinds.len() > 1, "{kinds:?}");
    let rtn = options("rtn");
    quantize(&source, &out, &plan, &rtn, &mut |_| ()).unwrap();
    let store = Arc::new(MatrixFile::open(&out).unwrap());
    let off = distance(&logits(&source), &logits_with(&source, Some(store)));
    assert!(off > 1e-6 && off < 0.2, "{off}");
}

#[test]
fn an_interrupted_job_goes_on_and_ends_as_if_it_had_not_been() {
    for (encoding, ending) in [(Encoding::from(Format::Q4_K), "gguf"), (INT4.into(), "safetensors")] {
        interrupt(encoding, ending);
    }
}

fn interrupt(encoding: Encoding, ending: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out").with_extension(ending));
    write_model(&source, TINY);
    let options = options("gptq");
    let plan = plan(&source, encoding);
    let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut calls = 0;
        let mut progress = |progress: Progress| {
            calls += usize::from(progress.done > 10);
            assert!(calls < 5, "interrupted");
        };
        quantize(&source, &out, &plan, &options, &mut progress)
    }));
    assert!(interrupted.is_err() && !out.exists() && parts_folder(&out).exists());
    let resumed = quantize(&source, &out, &plan, &options, &mut |_| ()).unwrap();
    assert!(resumed.resumed > 0 && !parts_folder(&out).exists());
    let whole = folder.path().join("whole").with_extension(ending);
    let report = quantize(&source, &whole, &plan, &options, &mut |_| ()).unwrap();
    assert_eq!(report.resumed, 0);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{ending}: files differ");
    assert_eq!(report.bytes, std::fs::metadata(&whole).unwrap().len());
    // The remains of another job are not used.
    std::fs::create_dir_all(parts_folder(&out)).unwrap();
    std::fs::write(parts_folder(&out).join("job"), "another").unwrap();
    std::fs::write(parts_folder(&out).join("token_embd+weight.safetensors"), "nonsense").unwrap();
    assert_eq!(quantize(&source, &out, &plan, &options, &mut |_| ()).unwrap().resumed, 0);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{ending}: files differ");
}

#[test]
fn bad_input_is_refused_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
    let run = |tiny: Tiny, options: &QuantizeOptions| {
        write_model(&source, tiny);
        let found = quantize(&source, &out, &plan(&source, Format::Q4_0), options, &mut |_| ());
        assert!(!out.exists());
        found.unwrap_err()
    };
    let spoiled = Tiny { spoiled: Some("blk.1.ffn_up.weight"), ..TINY };
    let found = run(spoiled, &options("rtn"));
    assert!(matches!(&found, Error::Tensor { name, .. } if name == "blk.1.ffn_up.weight"), "{found}");
    let short = QuantizeOptions { tokens: text(255, 1), ..options("gptq") };
    let found = run(TINY, &short);
    assert!(matches!(found, Error::TooLittleText { expected: 256, found: 192 }), "{found}");
    let long = QuantizeOptions { window: 1024, tokens: text(2048, 1), ..options("gptq") };
    let of_model = |error: Error| match error {
        Error::Model(error) => *error,
        error => panic!("{error}"),
    };
    let found = of_model(run(TINY, &long));
    assert!(matches!(found, ModelError::WindowLength { limit: 512, found: 1024 }), "{found}");
    let rotated = QuantizeOptions { rotation: FOLDED, ..options("gptq") };
    let gemma = Tiny { architecture: "gemma3", ..TINY };
    assert!(matches!(run(gemma, &rotated), Error::Unfoldable { .. }));
    let online = QuantizeOptions { rotation: ONLINE, ..options("gptq") };
    assert!(matches!(run(TINY, &online), Error::Unfoldable { .. }));
    let nf4 = plan(&source, GroupFormat::Nf4);
    let found = quantize(&source, &out, &nf4, &options("gptq"), &mut |_| ()).unwrap_err();
    assert!(matches!(found, Error::NotOfGguf { .. }) && !out.exists(), "{found}");
    let beyond = QuantizeOptions { tokens: vec![VOCABULARY as u32; 1024], ..options("gptq") };
    let found = of_model(run(TINY, &beyond));
    assert!(matches!(found, ModelError::Linear(breakers_linear::Error::RowIndex { .. })), "{found}");
}

#[test]
fn rows_that_are_no_whole_blocks_get_another_format() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.gguf");
    let mut writer = gguf::Writer::new();
    for (name, n_cols) in [("a", 512), ("b", 576), ("c", 40)] {
        writer.declare(name, Format::F32, &[1, n_cols]).unwrap();
    }
    let mut sink = writer.create(&source).unwrap();
    for (name, n_cols) in [("a", 512), ("b", 576), ("c", 40)] {
        sink.write(name, &vec![0; 4 * n_cols]).unwrap();
    }
    sink.finish().unwrap();
    for (format, expected) in [
        (Format::Q2_K, Format::IQ4_NL),
        (Format::Q3_K, Format::IQ4_NL),
        (Format::Q4_K, Format::Q5_0),
        (Format::Q5_K, Format::Q5_1),
        (Format::Q6_K, Format::Q8_0),
    ] {
        let found = plan(&source, format);
        let expected = [format, expected, Format::F16].map(|format| Some(format.into()));
        assert_eq!(["a", "b", "c"].map(|name| found.encoding(name)), expected);
        assert_eq!(found.notes().len(), 2, "{:?}", found.notes());
    }
}
