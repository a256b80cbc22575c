//! How much a model loses if each of its matrices gets a smaller format, and the best formats within a number
//! of bytes.
//!
//! A matrix's sensitivity to a format is the mean KL divergence between the predictions of the original model
//! and of one with this matrix alone rounded. The losses of several matrices are assumed to add up.
//!
//! # Cost
//! For each matrix and format one pass of the text from its block to the end of the model, and one through
//! the head.
//!
//! # Source
//! The choice is the greedy one on the lower convex hull of each matrix's (bytes, loss): Shoham and Gersho,
//! "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP 36 (1988), section III.

use std::collections::BTreeMap;

use breakers_core::{TokenId, kullback_leibler};
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, QuantizedMatrix};
use breakers_model::walk::BlockWalk;

use super::Plan;
use super::matrix::file_of;
use super::plan::fitting;
use crate::Error;
use crate::methods::RoundToNearest;
use crate::quantizer::{Quantizer, WeightMatrix};

/// Predictions are compared at every fourth token, which is enough and a quarter of the head's work.
const EVERY: usize = 4;

/// The effect of a format on a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The format, or its replacement if rows are not whole blocks of the requested one.
    pub encoding: Encoding,
    /// Bytes of the matrix in it.
    pub bytes: u64,
    /// Mean KL divergence of the predictions, in nats per token.
    pub loss: f64,
}

/// The choices of each matrix of the blocks.
///
/// # Example
/// ```no_run
/// use breakers_gguf::{Encoding, File, Format};
/// use breakers_quant::job::Sensitivities;
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let file = File::open("model.gguf")?;
/// // Tokens of some text; `breakers_model::Model` has the tokenizer.
/// let windows = vec![vec![1, 2, 3, 4]];
/// let encodings: [Encoding; 2] = [Format::Q3_K.into(), Format::Q4_K.into()];
/// let measured = Sensitivities::measure(&file, windows, &encodings, &mut |_, _| ())?;
/// // The formats that lose least within 60 MB.
/// let plan = measured.allocate(&file, 60_000_000)?;
/// plan.iter().for_each(|(name, encoding)| println!("{name}: {encoding}"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivities {
    /// By the matrix's name.
    pub choices: BTreeMap<String, Vec<Choice>>,
}

impl Sensitivities {
    /// Measures the sensitivity of every matrix of the blocks to each format, GGUF's or our own, on windows
    /// of a text. `progress` is called with (matrices done, all matrices).
    ///
    /// # Errors
    /// Those of [`BlockWalk`]; [`Error::Tensor`] for weights that are not finite; [`Error::TooLittleText`]
    /// without a window.
    pub fn measure(
        file: &gguf::File,
        windows: Vec<Vec<TokenId>>,
        encodings: &[Encoding],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, Error> {
        if windows.is_empty() {
            return Err(Error::TooLittleText { expected: 1, found: 0 });
        }
        let mut walk = BlockWalk::new(file, windows)?;
        let mut through = walk.clone();
        for block in 0..walk.n_blocks() {
            through.run(file, block, None, None, true, &mut |_| ())?;
        }
        let reference = through.logits(file, EVERY)?;
        drop(through);
        let matrices = |block: usize| {
            let prefix = format!("blk.{block}.");
            file.tensors().filter(move |view| view.shape().len() == 2 && view.name().starts_with(&prefix))
        };
        let n_matrices: usize = (0..walk.n_blocks()).map(|block| matrices(block).count()).sum();
        let mut found = Self::default();
        for block in 0..walk.n_blocks() {
            for view in matrices(block) {
                let mut choices: Vec<Choice> = Vec::new();
                for &encoding in encodings {
                    let encoding = fitting(encoding, view.n_cols());
                    if choices.iter().any(|choice| choice.encoding == encoding) {
                        continue;
                    }
                    let bytes = encoding.matrix_bytes(view.n_rows(), view.n_cols())? as u64;
                    let loss = match encoding == view.format().into() {
                        true => 0.0,
                        false => loss_of(file, &walk, block, &view, encoding, &reference)?,
                    };
                    choices.push(Choice { encoding, bytes, loss });
                }
                found.choices.insert(view.name().to_owned(), choices);
                progress(found.choices.len(), n_matrices);
            }
            walk.run(file, block, None, None, true, &mut |_| ())?;
        }
        Ok(found)
    }

    /// The plan with the least sum of losses that this method finds within a number of bytes for the matrices
    /// of the blocks; embeddings and head keep their formats. A matrix without choices keeps its own too, and
    /// its bytes do not count.
    ///
    /// # Errors
    /// [`Error::Budget`] if not even the smallest formats fit; [`Error::MissingTensor`] for a file without
    /// one of the matrices.
    pub fn allocate(&self, file: &gguf::File, budget: u64) -> Result<Plan, Error> {
        let mut plan = Plan::by(file, |_, from| from);
        let mut used = 0u64;
        // For each matrix, the corners of its lower hull and the current corner.
        let mut hulls: Vec<(&str, Vec<Choice>, usize)> =
            self.choices.iter().map(|(name, choices)| (&**name, hull(choices), 0)).collect();
        for (_, hull, _) in &hulls {
            used = used.saturating_add(hull.first().map_or(0, |choice| choice.bytes));
        }
        if used > budget {
            return Err(Error::Budget { expected: used, found: budget });
        }
        loop {
            let gain = |at: usize| -> Option<(f64, u64)> {
                let (_, hull, corner) = &hulls[at];
                let (now, next) = (hull.get(*corner)?, hull.get(corner + 1)?);
                let bytes = next.bytes - now.bytes;
                Some(((now.loss - next.loss) / bytes as f64, bytes))
            };
            let affordable = (0..hulls.len()).filter_map(|at| Some((at, gain(at)?)));
            let best = affordable
                .filter(|(_, (_, bytes))| used + bytes <= budget)
                .max_by(|a, b| a.1.0.total_cmp(&b.1.0));
            let Some((at, (_, bytes))) = best else { break };
            used += bytes;
            hulls[at].2 += 1;
        }
        for (name, hull, corner) in hulls {
            let view = file.tensor(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
            if let Some(choice) = hull.get(corner) {
                plan.set(name, choice.encoding, view.n_cols());
            }
        }
        Ok(plan)
    }
}

/// The corners of the lower convex hull, by ascending bytes and falling loss.
fn hull(choices: &[Choice]) -> Vec<Choice> {
    let mut sorted = choices.to_vec();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut corners: Vec<Choice> = Vec::new();
    for choice in sorted {
        if corners.last().is_some_and(|last| choice.loss >= last.loss || choice.bytes == last.bytes) {
            continue;
        }
        while let [.., a, b] = &corners[..] {
            let slope = |from: &Choice, to: &Choice| (from.loss - to.loss) / (to.bytes - from.bytes) as f64;
            if slope(a, b) > slope(b, &choice) {
                break;
            }
            corners.pop();
        }
        corners.push(choice);
    }
    corners
}

/// The divergence caused by rounding one matrix.
fn loss_of(
    file: &gguf::File,
    walk: &BlockWalk,
    block: usize,
    view: &gguf::TensorView<'_>,
    encoding: Encoding,
    reference: &[Vec<f32>],
) -> Result<f64, Error> {
    let values = view.to_f32();
    let weights =
        WeightMatrix::new(&values, view.n_rows(), view.n_cols()).map_err(Error::in_tensor(view.name()))?;
    let rounded =
        RoundToNearest::new().quantize(&weights, encoding, None).map_err(Error::in_tensor(view.name()))?;
    let prefix = format!("blk.{block}.");
    let views: Vec<_> = file.tensors().filter(|other| other.name().starts_with(&prefix)).collect();
    let tensors: Vec<_> = views
        .iter()
        .map(|other| match other.name() == view.name() {
            true => (other, rounded.matrix.clone()),
            false => (other, QuantizedMatrix::from_gguf(other)),
        })
        .collect();
    let changed = file_of(&tensors)?;
    let mut walk = walk.clone();
    walk.run(&changed, block, None, None, true, &mut |_| ())?;
    for later in block + 1..walk.n_blocks() {
        walk.run(file, later, None, None, true, &mut |_| ())?;
    }
    let found = walk.logits(file, EVERY)?;
    let rows = reference.iter().zip(&found);
    let divergences = rows.map(|(expected, found)| kullback_leibler(expected, found));
    let sum = divergences.sum::<Result<f64, _>>()?;
    Ok(sum / reference.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use breakers_gguf::Format;

    use super::*;

    fn choice(format: Format, bytes: u64, loss: f64) -> Choice {
        Choice { encoding: format.into(), bytes, loss }
    }

    #[test]
    fn hulls_hold_what_can_be_best() {
        let all = [
            choice(Format::Q2_K, 10, 8.0),
            choice(Format::Q3_K, 14, 7.5),
            choice(Format::Q4_K, 20, 2.0),
            choice(Format::Q5_K, 24, 3.0),
            choice(Format::Q6_K, 30, 0.0),
            choice(Format::Q8_0, 40, 0.0),
        ];
        let found: Vec<Encoding> = hull(&all).iter().map(|c| c.encoding).collect();
        assert_eq!(found, [Format::Q2_K, Format::Q4_K, Format::Q6_K].map(Encoding::from));
    }

    #[test]
    fn allocation_is_near_the_best_of_all_combinations() {
        let mut writer = gguf::Writer::new();
        let names: Vec<String> = (0..5).map(|i| format!("blk.{i}.w")).collect();
        for name in &names {
            writer.declare(name, Format::F32, &[1, 256]).unwrap();
        }
        let mut sink = writer.write_to(Vec::new()).unwrap();
        for name in &names {
            sink.write(name, &[0; 1024]).unwrap();
        }
        let file = gguf::File::from_bytes(sink.finish().unwrap()).unwrap();
        let formats = [(Format::Q2_K, 84u64), (Format::Q3_K, 110), (Format::Q4_K, 144)];
        let mut sensitivities = Sensitivities::default();
        for (i, name) in names.iter().enumerate() {
            // Convex in the bytes, and of very different sizes.
            let factor = [1.0, 8.0, 0.2, 3.0, 0.5][i];
            let choices =
                formats.map(|(format, bytes)| choice(format, bytes, factor * (144 - bytes).pow(2) as f64));
            sensitivities.choices.insert(name.clone(), choices.to_vec());
        }
        for budget in [420, 500, 560, 640, 720] {
            let plan = sensitivities.allocate(&file, budget).unwrap();
            let cost = |pick: &dyn Fn(&str) -> Encoding| -> (u64, f64) {
                let chosen = sensitivities.choices.iter().map(|(name, all)| {
                    let encoding = pick(name);
                    all.iter().find(|c| c.encoding == encoding).map_or((0, 0.0), |c| (c.bytes, c.loss))
                });
                chosen.fold((0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
            };
            let found = cost(&|name| plan.encoding(name).unwrap());
            assert!(found.0 <= budget);
            let mut best = f64::INFINITY;
            for combination in 0..3usize.pow(5) {
                let pick = |name: &str| {
                    let i = names.iter().position(|n| n == name).unwrap();
                    formats[combination / 3usize.pow(i as u32) % 3].0.into()
                };
                let (bytes, loss) = cost(&pick);
                if bytes <= budget {
                    best = best.min(loss);
                }
            }
            // Greedy leaves less than one step's bytes unused.
            let (_, roomier) =
                cost(&|name| sensitivities.allocate(&file, budget + 60).unwrap().encoding(name).unwrap());
            assert!(found.1 >= best && roomier <= best + 1e-9, "{budget}: {found:?} {best} {roomier}");
        }
        let found = sensitivities.allocate(&file, 419).unwrap_err();
        assert!(matches!(found, Error::Budget { expected: 420, found: 419 }), "{found}");
    }
}
