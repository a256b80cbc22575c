//! Methods that this crate does not know, on whole models.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_gguf::{Encoding, File, Format, GroupFormat, MatrixFile};
use breakers_quant::job::{JobSpec, Plan, QuantizeOptions, QuantizeReport, quantize};
use breakers_quant::methods::{Rotated, RoundToNearest};
use breakers_quant::quantizer::{Folding, QuantizationReport, Quantized, Quantizer, WeightMatrix};
use breakers_quant::statistics::{Statistics, StatisticsConfig};
use breakers_quant::{Error, Result};

use crate::tiny_model::{BLOCKS, TINY, write_model};
use crate::whole_models::{distance, logits, text};

/// Rounding with variations for tests.
#[derive(Debug, Default)]
struct Mine {
    /// What all weights are multiplied by first.
    gain: f32,
    needs: Option<StatisticsConfig>,
    factors: Option<Vec<f32>>,
    prepares: bool,
    gives: Gives,
    calls: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    prepared: AtomicUsize,
    plain: AtomicUsize,
    by_prepared: AtomicUsize,
}

#[derive(Debug, Default, Clone, Copy)]
enum Gives {
    #[default]
    WhatIsAsked,
    AnotherFormat,
    FewerRows,
    DividedInputs,
    RotatedInputs,
}

impl Quantizer for Mine {
    fn name(&self) -> String {
        "mine".to_owned()
    }

    fn needs(&self) -> Option<StatisticsConfig> {
        self.needs
    }

    fn folding(&self) -> Option<&dyn Folding> {
        self.factors.as_ref().map(|_| self as &dyn Folding)
    }

    fn prepare(&self, statistics: &Statistics) -> Result<Option<Box<dyn Quantizer>>> {
        assert_eq!(statistics.has_hessian(), self.needs.unwrap().hessian);
        self.calls.prepared.fetch_add(1, Ordering::Relaxed);
        let (gain, calls) = (self.gain, self.calls.clone());
        Ok(self.prepares.then(|| Box::new(Ready { gain, calls }) as Box<dyn Quantizer>))
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        self.calls.plain.fetch_add(1, Ordering::Relaxed);
        let (encoding, n_rows) = match self.gives {
            Gives::AnotherFormat => (Format::Q8_0.into(), weights.n_rows()),
            Gives::FewerRows => (encoding, weights.n_rows() - 1),
            _ => (encoding, weights.n_rows()),
        };
        let n_cols = weights.n_cols();
        let values: Vec<f32> = weights.values()[..n_rows * n_cols].iter().map(|x| self.gain * x).collect();
        let weights = WeightMatrix::new(&values, n_rows, n_cols)?;
        if matches!(self.gives, Gives::RotatedInputs) {
            return Rotated::new(RoundToNearest::new(), 3).quantize(&weights, encoding, statistics);
        }
        let mut quantized = RoundToNearest::new().unweighted().quantize(&weights, encoding, statistics)?;
        if matches!(self.gives, Gives::DividedInputs) {
            quantized.matrix = quantized.matrix.of_divided_inputs(vec![2.0; n_cols])?;
        }
        Quantized::new(quantized.matrix, &weights, statistics, QuantizationReport::default())
    }
}

impl Folding for Mine {
    fn factors(&self, weights: &WeightMatrix<'_>, _: Encoding, _: &Statistics) -> Result<Vec<f32>> {
        let factors = self.factors.iter().flatten().copied();
        Ok(factors.cycle().take(weights.n_cols().max(self.factors.as_ref().map_or(0, Vec::len))).collect())
    }

    fn rounding(&self) -> &dyn Quantizer {
        self
    }
}

/// The quantizer prepared for the matrices of a place.
#[derive(Debug)]
struct Ready {
    gain: f32,
    calls: Arc<Calls>,
}

impl Quantizer for Ready {
    fn name(&self) -> String {
        "mine".to_owned()
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        self.calls.by_prepared.fetch_add(1, Ordering::Relaxed);
        assert!(
            statistics.is_some_and(|statistics| !statistics.has_hessian()),
            "the Hessian's memory is free"
        );
        Mine { gain: self.gain, ..Mine::default() }.quantize(weights, encoding, None)
    }
}

fn run(source: &Path, out: &Path, encoding: Encoding, mine: Mine) -> Result<QuantizeReport> {
    let plan = Plan::by(&File::open(source)?, |name, from| match name.starts_with("blk.") {
        true => encoding,
        false => from.into(),
    });
    let options = QuantizeOptions::new(Arc::new(mine), text(1024, 1));
    let options = QuantizeOptions { window: 64, min_tokens: 256, ..options };
    quantize(source, out, &plan, &options, &mut |_| ())
}

#[test]
fn a_method_from_outside_quantizes_a_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.gguf");
    write_model(&source, TINY);
    let original = File::open(&source).unwrap();
    let nf4 = Encoding::from(GroupFormat::Nf4);
    for (encoding, name) in [(Encoding::from(Format::Q4_0), "out.gguf"), (nf4, "out.safetensors")] {
        let out = folder.path().join(name);
        let (mine, calls) = (Mine { gain: 0.5, ..Mine::default() }, Arc::<Calls>::default());
        let report = run(&source, &out, encoding, Mine { calls: calls.clone(), ..mine }).unwrap();
        // It reads no text, and is asked once for each matrix of the blocks.
        assert_eq!(report.n_tokens, 0);
        assert_eq!(calls.plain.load(Ordering::Relaxed), 7 * BLOCKS);
        let mine = Mine { gain: 0.5, ..Mine::default() };
        for view in
            original.tensors().filter(|view| view.name().starts_with("blk.") && view.shape().len() == 2)
        {
            let values = view.to_f32();
            let weights = WeightMatrix::new(&values, view.n_rows(), view.n_cols()).unwrap();
            let expected = mine.quantize(&weights, encoding, None).unwrap().matrix.to_f32();
            let found = match encoding {
                Encoding::Gguf(_) => File::open(&out).unwrap().require(view.name()).unwrap().to_f32(),
                _ => MatrixFile::open(&out).unwrap().matrix(view.name()).unwrap().to_f32(),
            };
            assert!(expected == found, "{}", view.name());
        }
        if let Encoding::Gguf(_) = encoding {
            let file = File::open(&out).unwrap();
            assert_eq!(file.metadata().require_str("breakers.quantize.method").unwrap(), "mine");
        }
    }
    // In the place of another method in a job's words.
    let (out, job) = (folder.path().join("new/out.gguf"), "rtn:Q4_0,ffn_up=Q8_0".parse::<JobSpec>().unwrap());
    let job = JobSpec { quantizer: Arc::new(Mine { gain: 0.5, ..Mine::default() }), ..job };
    assert_eq!(job.to_string(), "mine:Q4_0,ffn_up=Q8_0");
    job.run(&source, &out, Vec::new(), 64, &mut |_| ()).unwrap();
    let format = |name: &str| File::open(&out).unwrap().require(name).unwrap().format();
    assert_eq!(["blk.0.ffn_up.weight", "blk.0.ffn_down.weight"].map(format), [Format::Q8_0, Format::Q4_0]);
}

#[test]
fn work_is_shared_by_the_matrices_of_a_place() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
    write_model(&source, TINY);
    for (prepares, hessian) in [(true, true), (true, false), (false, true)] {
        let calls = Arc::<Calls>::default();
        let needs = Some(StatisticsConfig { hessian, ..StatisticsConfig::default() });
        let mine = Mine { gain: 1.0, needs, prepares, calls: calls.clone(), ..Mine::default() };
        let report = run(&source, &out, Format::Q8_0.into(), mine).unwrap();
        assert_eq!(report.n_tokens, 1024);
        assert!(
            report.tensors.iter().filter(|tensor| !tensor.kept).all(|t| t.output_error.is_some() != prepares)
        );
        let counts = [&calls.prepared, &calls.by_prepared, &calls.plain].map(|n| n.load(Ordering::Relaxed));
        let by_prepared = if prepares { 7 * BLOCKS } else { 0 };
        assert_eq!(counts, [4 * BLOCKS, by_prepared, 7 * BLOCKS - by_prepared]);
    }
}

#[test]
fn factors_from_outside_are_folded_into_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source.gguf"), folder.path().join("out.gguf"));
    write_model(&source, TINY);
    let needs = Some(StatisticsConfig::default());
    let with =
        |factors: &[f32]| Mine { gain: 1.0, needs, factors: Some(factors.to_vec()), ..Mine::default() };
    run(&source, &out, Format::F16.into(), with(&[2.0, 0.5, 4.0, 1.0])).unwrap();
    let (before, after) = (File::open(&source).unwrap(), File::open(&out).unwrap());
    let norm = |file: &File| file.require("blk.1.ffn_norm.weight").unwrap().to_f32();
    let expected: Vec<f32> =
        norm(&before).chunks(4).flat_map(|x| [x[0] / 2.0, x[1] / 0.5, x[2] / 4.0, x[3]]).collect();
    assert_eq!(norm(&after), expected);
    // The same function, up to the rounding of half precision.
    let off = distance(&logits(&source), &logits(&out));
    assert!(off < 1e-5, "{off}");
    std::fs::remove_file(&out).unwrap();
    for (factors, wrong) in [(&[1.0; 600][..], "600"), (&[1.0, 0.0][..], "0"), (&[1.0, f32::NAN][..], "NaN")]
    {
        let Err(Error::Tensor { name, source: found }) =
            run(&source, &out, Format::Q8_0.into(), with(factors))
        else {
            panic!("{wrong}")
        };
        assert!(name == "blk.0.attn_q.weight" && found.to_string().contains(wrong), "{name}: {found}");
        assert!(!out.exists());
    }
}

#[test]
fn what_the_output_cannot_hold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.gguf");
    write_model(&source, TINY);
    for (gives, found_words) in [
        (Gives::AnotherFormat, "256 rows of 256 in Q8_0"),
        (Gives::FewerRows, "255 rows of 256 in Q4_0"),
        (Gives::DividedInputs, "one for divided inputs"),
        (Gives::RotatedInputs, "one for rotated inputs"),
    ] {
        let out = folder.path().join("out.gguf");
        let found = run(&source, &out, Format::Q4_0.into(), Mine { gain: 1.0, gives, ..Mine::default() });
        let Err(Error::Tensor { source: error, .. }) = found else { panic!("{found_words}: {found:?}") };
        let Some(Error::WrongMatrix { method, found, .. }) = error.downcast_ref() else { panic!("{error}") };
        assert_eq!((&**method, &**found), ("mine", found_words));
        assert!(!out.exists());
    }
    // A file of our own can say that inputs are rotated.
    let out = folder.path().join("out.safetensors");
    let mine = Mine { gain: 1.0, gives: Gives::RotatedInputs, ..Mine::default() };
    run(&source, &out, Format::Q8_0.into(), mine).unwrap();
    let store = MatrixFile::open(&out).unwrap();
    assert_eq!(store.matrix("blk.0.ffn_up.weight").unwrap().rotation_seed(), Some(3));
    // But for the head, which is quantized in slabs.
    let needs = Some(StatisticsConfig { sample_rows: 8, ..StatisticsConfig::default() });
    let mine = Mine { gain: 1.0, gives: Gives::RotatedInputs, needs, ..Mine::default() };
    let options =
        QuantizeOptions { window: 64, min_tokens: 256, ..QuantizeOptions::new(Arc::new(mine), text(512, 1)) };
    let plan = Plan::uniform(&File::open(&source).unwrap(), Format::Q8_0);
    let Err(Error::Tensor { name, source: error }) = quantize(&source, &out, &plan, &options, &mut |_| ())
    else {
        panic!()
    };
    assert!(
        name == "output.weight" && error.to_string().contains("one for rotated inputs"),
        "{name}: {error}"
    );
}
