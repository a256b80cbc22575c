//! The vectors to search: sentences through all-MiniLM-L6-v2, or GloVe, kept on disk once computed.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use breakers_cli::{Bar, Error, FetchBar, Result};
use breakers_core::Embedder as _;
use breakers_embed::Bert;
use breakers_hub::{FetchOptions, Hub};
use breakers_retrieval::{Metric, distance, index::TopK};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;

/// Texts embedded between two steps of the progress bar.
const BATCH: usize = 64;
/// The seed of every choice: which sentences are stored, which are queries.
const SEED: u64 = 20_260_101;

/// Vectors of one dimension, and the texts that they stand for if known.
pub(crate) struct Corpus {
    pub(crate) name: String,
    pub(crate) dimension: usize,
    /// `[n, dimension]`
    pub(crate) base: Vec<f32>,
    /// `[n_queries, dimension]`, none of them in `base`.
    pub(crate) queries: Vec<f32>,
    /// Files that other programs read: `base` and `queries` as .npy.
    pub(crate) files: [PathBuf; 2],
    /// Half of the vectors are on this side of `axis`, the first vector: a filter on the side correlates with
    /// the vectors.
    pub(crate) axis_median: f32,
}

/// Glosses of WordNet: one sentence for each meaning, all different, in the order of a seeded shuffle.
pub(crate) fn glosses() -> Result<Vec<String>> {
    let folder = Hub::new()?.resolve("wordnet", &FetchOptions::from_env()?, &mut FetchBar::new())?.path;
    let mut glosses = Vec::new();
    for part in ["noun", "verb", "adj", "adv"] {
        let text = String::from_utf8_lossy(&std::fs::read(folder.join("dict").join(format!("data.{part}")))?)
            .into_owned();
        // License lines begin with two spaces; an entry's gloss follows the bar.
        let entries = text.lines().filter(|line| !line.starts_with("  "));
        glosses.extend(entries.filter_map(|line| Some(line.split_once(" | ")?.1.trim().to_owned())));
    }
    glosses.sort();
    glosses.dedup();
    glosses.shuffle(&mut rand::rngs::StdRng::seed_from_u64(SEED));
    Ok(glosses)
}

/// Lines of a text file that are not empty, each once, shuffled.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    let mut lines: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    lines.shuffle(&mut rand::rngs::StdRng::seed_from_u64(SEED));
    Ok(lines)
}

impl Corpus {
    fn new(name: String, dimension: usize, base: Vec<f32>, queries: Vec<f32>, files: [PathBuf; 2]) -> Self {
        let mut corpus = Self { name, dimension, base, queries, files, axis_median: 0.0 };
        let mut along: Vec<f32> = corpus.base().map(|v| distance::dot(v, corpus.axis())).collect();
        along.sort_by(f32::total_cmp);
        corpus.axis_median = along.get(along.len() / 2).copied().unwrap_or_default();
        corpus
    }

    pub(crate) fn base(&self) -> impl Iterator<Item = &[f32]> {
        self.base.chunks_exact(self.dimension)
    }

    pub(crate) fn queries(&self) -> impl Iterator<Item = &[f32]> {
        self.queries.chunks_exact(self.dimension)
    }

    pub(crate) fn axis(&self) -> &[f32] {
        &self.base[..self.dimension]
    }

    /// The ids of the nearest of each query, by a plain scan.
    pub(crate) fn truth(&self, k: usize) -> Vec<Vec<u64>> {
        let nearest = |query: &[f32]| {
            let mut top = TopK::new(k);
            for (id, vector) in self.base().enumerate() {
                top.push(id as u32, Metric::Cosine.distance(query, vector));
            }
            top.into_neighbors().iter().map(|n| n.slot.into()).collect()
        };
        self.queries().map(nearest).collect()
    }

    /// Words of GloVe, 50 numbers each, of length 1: `n` and `n_queries` more.
    pub(crate) fn glove(n: usize, n_queries: usize, cache: &Path) -> Result<Self> {
        let files = [cache.join(format!("glove-{n}.npy")), cache.join(format!("glove-{n}-q{n_queries}.npy"))];
        let dimension = 50;
        if let (Ok((base, 50)), Ok((queries, 50))) = (read_npy(&files[0]), read_npy(&files[1])) {
            return Ok(Self::new("glove".to_owned(), dimension, base, queries, files));
        }
        let path = Hub::new()?.resolve("glove-50d", &FetchOptions::from_env()?, &mut FetchBar::new())?.path;
        let (mut all, width) = read_npy(&path)?;
        if width != dimension || all.len() < (n + n_queries) * dimension {
            return Err(Error::Usage(format!(
                "GloVe has {} words of {width} numbers",
                all.len() / width.max(1)
            )));
        }
        for vector in all.chunks_exact_mut(dimension) {
            let norm = distance::norm_squared(vector).sqrt().max(f32::MIN_POSITIVE);
            vector.iter_mut().for_each(|x| *x /= norm);
        }
        let mut order: Vec<usize> = (0..all.len() / dimension).collect();
        order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(SEED));
        let gather = |order: &[usize]| -> Vec<f32> {
            order.iter().flat_map(|&i| &all[i * dimension..][..dimension]).copied().collect()
        };
        let (base, queries) = (gather(&order[..n]), gather(&order[n..n + n_queries]));
        std::fs::create_dir_all(cache)?;
        write_npy(&files[0], &base, dimension)?;
        write_npy(&files[1], &queries, dimension)?;
        Ok(Self::new("glove".to_owned(), dimension, base, queries, files))
    }

    /// `n` sentences and `n_queries` more through all-MiniLM-L6-v2; of WordNet, or the lines of a file.
    pub(crate) fn sentences(n: usize, n_queries: usize, text: Option<&Path>, cache: &Path) -> Result<Self> {
        let (name, texts) = match text {
            None => ("wordnet".to_owned(), glosses()?),
            Some(path) => {
                let name =
                    path.file_stem().map_or_else(|| "text".into(), |s| s.to_string_lossy().into_owned());
                (name, lines(path)?)
            }
        };
        if texts.len() < n + n_queries {
            return Err(Error::Usage(format!(
                "{name} has {} different sentences; --n {n} and --queries {n_queries} need {}",
                texts.len(),
                n + n_queries
            )));
        }
        let files =
            [cache.join(format!("{name}-{n}.npy")), cache.join(format!("{name}-{n}-q{n_queries}.npy"))];
        if let (Ok((base, dimension)), Ok((queries, _))) = (read_npy(&files[0]), read_npy(&files[1])) {
            return Ok(Self::new(name, dimension, base, queries, files));
        }
        std::fs::create_dir_all(cache)?;
        let folder = Hub::new()?.resolve("minilm", &FetchOptions::from_env()?, &mut FetchBar::new())?.path;
        let bert = Bert::load(folder, &breakers_backend::device::open("flex")?)?;
        let embed = |texts: &[String], what: &str| -> Result<Vec<f32>> {
            let bar = Bar::new(texts.len(), "sentences");
            bar.doing(what);
            // Texts of similar length are embedded together, which fills passes evenly; the order is
            // restored.
            let mut order: Vec<usize> = (0..texts.len()).collect();
            order.sort_by_key(|&i| texts[i].len());
            let dimension = bert.dimension();
            let mut vectors = vec![0.0; texts.len() * dimension];
            for (step, batch) in order.chunks(BATCH).enumerate() {
                let batch_texts: Vec<&str> = batch.iter().map(|&i| texts[i].as_str()).collect();
                for (&i, vector) in batch.iter().zip(bert.embed(&batch_texts)?) {
                    vectors[i * dimension..][..dimension].copy_from_slice(&vector);
                }
                bar.done((step * BATCH + batch.len()).min(texts.len()));
            }
            Ok(vectors)
        };
        let base = embed(&texts[..n], "embedding the sentences")?;
        let queries = embed(&texts[n..n + n_queries], "embedding the queries")?;
        let dimension = base.len() / n.max(1);
        write_npy(&files[0], &base, dimension)?;
        write_npy(&files[1], &queries, dimension)?;
        Ok(Self::new(name, dimension, base, queries, files))
    }
}

/// Writes a matrix `[n, dimension]` in numpy's format, version 1.0.
pub(crate) fn write_npy(path: &Path, values: &[f32], dimension: usize) -> Result {
    let shape = format!("({}, {dimension})", values.len() / dimension.max(1));
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version and length take ten bytes; the data begins at a multiple of 64.
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    out.flush()?;
    Ok(())
}

/// Reads a matrix of 32-bit floats in numpy's format, by rows or by columns: the values by
/// rows, and the dimension.
pub(crate) fn read_npy(path: &Path) -> Result<(Vec<f32>, usize)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut start = [0; 10];
    file.read_exact(&mut start)?;
    let mut header = vec![0; usize::from(u16::from_le_bytes([start[8], start[9]]))];
    file.read_exact(&mut header)?;
    let header = String::from_utf8_lossy(&header).into_owned();
    let shape: Option<Vec<usize>> = header
        .split_once("'shape': (")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(shape, _)| shape.split(',').filter_map(|n| n.trim().parse().ok()).collect());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    match shape.as_deref() {
        Some(&[n, dimension])
            if start.starts_with(b"\x93NUMPY\x01")
                && header.contains("'<f4'")
                && bytes.len() == n * dimension * 4 =>
        {
            let values = bytes.as_chunks::<4>().0;
            let by_columns = header.contains("'fortran_order': True");
            let place = |i: usize| if by_columns { i % dimension * n + i / dimension } else { i };
            Ok(((0..n * dimension).map(|i| f32::from_le_bytes(values[place(i)])).collect(), dimension))
        }
        _ => Err(Error::Usage(format!("{} is no matrix of 32-bit floats in .npy", path.display()))),
    }
}
