//! A model in several processes: the same bits as in one, and errors that say which stage is lost.

use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};

use breakers_backend::harness::model_path;
use breakers_core::{LanguageModel, LayerTap, SequenceId, Step, TokenMask, Want};
use breakers_kv_cache::{CacheShape, CacheSpec};
use breakers_model::stages::{MAX_FRAME, Stage, StageServer, Stream, Transport, channel};
use breakers_model::{Error, LoadOptions, Model, Runner};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::transformers::Draft;

fn load(path: &Path, layers: Option<Range<usize>>) -> Model {
    Model::load(path, &LoadOptions { layers, ..LoadOptions::default() }).unwrap()
}

fn cache(
    name: &str,
) -> impl Fn(&CacheShape) -> breakers_kv_cache::Result<Box<dyn breakers_kv_cache::KvCache>> + use<> {
    let spec: CacheSpec = name.parse().unwrap();
    move |shape| spec.make(shape, &burn::tensor::Device::flex())
}

/// A stage on another thread, over TCP or within the process.
fn stage(path: &Path, layers: Range<usize>, name: &str, over_tcp: bool) -> Stage {
    let server = StageServer::new(load(path, Some(layers)), name).with_cache(cache(name));
    let serve = |mut server: StageServer, mut transport: Box<dyn Transport>| {
        std::thread::spawn(move || server.serve(&mut *transport))
    };
    if over_tcp {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Stream::connect(listener.local_addr().unwrap()).unwrap();
        serve(server, Box::new(Stream::tcp(listener.accept().unwrap().0).unwrap()));
        return Stage::new("over there", stream).unwrap();
    }
    let (near, far) = channel();
    serve(server, Box::new(far));
    Stage::new("next door", near).unwrap()
}

/// The model's layers divided at these places.
fn divided(path: &Path, cuts: &[usize], name: &str, over_tcp: bool) -> Runner {
    let n_layers = load(path, Some(0..1)).info().n_layers;
    let ends = cuts[1..].iter().copied().chain([n_layers]);
    let stages = cuts.iter().copied().zip(ends).map(|(from, to)| stage(path, from..to, name, over_tcp));
    // In any order.
    let stages: Vec<Stage> = stages.collect::<Vec<_>>().into_iter().rev().collect();
    load(path, Some(0..cuts[0])).runner().with_cache(cache(name)).with_stages(stages, name).unwrap()
}

/// Does the same to both, at random, and compares all that comes of it.
fn compare(whole: &mut Runner, parts: &mut Runner, n_calls: usize, seed: u64, can_truncate: bool) {
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let vocab = whole.info().vocab_size;
    // The ids in both, and the tokens that are final.
    let mut open: Vec<(SequenceId, SequenceId)> = Vec::new();
    let mut n_rows = 0;
    for call in 0..n_calls {
        if open.is_empty() || (open.len() < 4 && random.random_bool(0.3)) {
            open.push((whole.open().unwrap(), parts.open().unwrap()));
        }
        let at = random.random_range(0..open.len());
        let (a, b) = open[at];
        match random.random_range(0..10) {
            0 if open.len() < 5 => open.push((whole.fork(a).unwrap(), parts.fork(b).unwrap())),
            1 if open.len() > 1 => {
                open.remove(at);
                whole.close(a);
                parts.close(b);
            }
            2 if can_truncate => {
                let len = random.random_range(0..=whole.len(a).unwrap());
                whole.truncate(a, len).unwrap();
                parts.truncate(b, len).unwrap();
            }
            _ => {}
        }
        // Some sequences get a chain, at most one a tree.
        let mut steps: Vec<[Step; 2]> = Vec::new();
        for &(a, b) in &open {
            let n = random.random_range(0..24usize);
            if n == 0 || whole.len(a).unwrap() + n > whole.info().max_context {
                continue;
            }
            let tokens: Vec<u32> = (0..n).map(|_| random.random_range(0..vocab as u32)).collect();
            let kinds = [Want::Nothing, Want::ArgMax, Want::TopK(3), Want::Logits];
            let wants: Vec<Want> = (0..n).map(|_| kinds[random.random_range(0..4)]).collect();
            let parents = (n < 9 && random.random_bool(0.3)).then(|| {
                (0..n).map(|row| random.random_bool(0.8).then(|| row.checked_sub(1)).flatten()).collect()
            });
            let mask = std::sync::Arc::new(TokenMask::of(vocab, (0..vocab as u32).filter(|id| id % 3 == 0)));
            let masked = random.random_bool(0.2);
            let taps = if random.random_bool(0.2) { vec![LayerTap::Final] } else { Vec::new() };
            n_rows += n;
            steps.push([a, b].map(|sequence| {
                let mut step = Step::each(sequence, tokens.clone(), Want::Nothing);
                step.wants.clone_from(&wants);
                step.parents.clone_from(&parents);
                step.taps.clone_from(&taps);
                step.masks = if masked { vec![Some(mask.clone()); n] } else { Vec::new() };
                step
            }));
        }
        let (mut one, mut other): (Vec<Step>, Vec<Step>) =
            steps.into_iter().map(<(Step, Step)>::from).unzip();
        whole.forward(&mut one).unwrap();
        parts.forward(&mut other).unwrap();
        for (one, other) in one.iter().zip(&other) {
            assert_eq!(one.outputs, other.outputs, "call {call}");
            let n = one.tokens.len();
            let kept: Vec<usize> = match &one.parents {
                None => (0..random.random_range(0..=n)).collect(),
                Some(parents) => {
                    let mut path = vec![random.random_range(0..n)];
                    while let Some(parent) = parents[path[0]] {
                        path.insert(0, parent);
                    }
                    path
                }
            };
            whole.retain(one.sequence, &kept).unwrap();
            parts.retain(other.sequence, &kept).unwrap();
            whole.commit(one.sequence, kept.len()).unwrap();
            parts.commit(other.sequence, kept.len()).unwrap();
            assert_eq!(whole.len(one.sequence).unwrap(), parts.len(other.sequence).unwrap());
        }
    }
    assert!(n_rows > 10 * n_calls, "{n_rows} rows");
    assert_eq!(whole.held_bytes() > 0, parts.held_bytes() > 0);
    // A pass may have no steps.
    whole.forward(&mut []).unwrap();
    parts.forward(&mut []).unwrap();
    open.into_iter().for_each(|(a, b)| {
        whole.close(a);
        parts.close(b);
    });
}

fn tiny(folder: &tempfile::TempDir, architecture: &'static str, name: &str) -> PathBuf {
    let path = folder.path().join(format!("{name}.gguf"));
    Draft::of(architecture, name).write(&path);
    path
}

#[test]
fn a_divided_model_has_the_bits_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    for (architecture, name, caches) in [
        ("qwen3", "qwen3", &["f16", "f32", "q8_0"][..]),
        ("qwen3moe", "qwen3-moe", &["f16"]),
        ("llama", "mixtral", &["f16"]),
    ] {
        let path = tiny(&folder, architecture, name);
        let whole = load(&path, None);
        let n_layers = whole.info().n_layers;
        for cache_name in caches {
            for (cuts, over_tcp) in
                [(vec![n_layers - 1], false), (vec![1], true), ((1..n_layers).collect(), true)]
            {
                let mut one = whole.runner().with_cache(cache(cache_name));
                let mut parts = divided(&path, &cuts, cache_name, over_tcp);
                compare(&mut one, &mut parts, 40, cuts.len() as u64, cache_name.starts_with('f'));
            }
        }
    }
    for name in ["smollm2-135m", "gemma3-270m"] {
        let Some(path) = model_path(name) else { continue };
        let whole = load(&path, None);
        let mut parts = divided(&path, &[5, 11], "f16", true);
        compare(&mut whole.runner(), &mut parts, 6, 7, true);
        // No process holds more than its layers.
        let bytes: Vec<usize> = [0..5, 5..11].map(|layers| load(&path, Some(layers)).weight_bytes()).to_vec();
        assert!(bytes.iter().sum::<usize>() < whole.weight_bytes(), "{bytes:?} of {}", whole.weight_bytes());
        assert!(bytes[1] * 2 < whole.weight_bytes(), "{bytes:?} of {}", whole.weight_bytes());
    }
}

#[test]
fn stages_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(&folder, "qwen3", "qwen3");
    let other = tiny(&folder, "llama", "mixtral");
    let n_layers = load(&path, None).info().n_layers;
    let refused = |stages: Vec<Stage>, cache: &str| {
        let first = load(&path, Some(0..1)).runner();
        first.with_stages(stages, cache).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(refused(Vec::new(), "f16").contains("layers"));
    assert!(refused(vec![stage(&path, 2..n_layers, "f16", false)], "f16").contains("the first layer"));
    assert!(refused(vec![stage(&path, 1..n_layers - 1, "f16", false)], "f16").contains("layers"));
    assert!(refused(vec![stage(&path, 1..n_layers, "f32", false)], "f16").contains("the cache is f32"));
    assert!(refused(vec![stage(&other, 1..2, "f16", false)], "f16").contains("the file"));
    assert_eq!(refused(vec![stage(&path, 1..n_layers, "f16", false)], "f16"), "");
    for layers in [0..0, Range { start: 2, end: 1 }, 1..n_layers + 1] {
        let options = LoadOptions { layers: Some(layers), ..LoadOptions::default() };
        assert!(matches!(Model::load(&path, &options), Err(Error::Layers { .. })));
    }
    // A part is no model by itself, and a stage none that embeds.
    let mut part = load(&path, Some(1..n_layers)).runner();
    let sequence = part.open().unwrap();
    assert!(part.forward(&mut [Step::last(sequence, vec![1], Want::ArgMax)]).is_err());
}

/// Ends after some frames, or says something else.
struct Faulty {
    inner: Box<dyn Transport>,
    left: usize,
    instead: Option<Vec<u8>>,
}

impl Transport for Faulty {
    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.inner.send(frame)
    }

    fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let frame = self.inner.receive()?;
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => {
                let gone = std::io::ErrorKind::ConnectionReset;
                return self.instead.clone().ok_or_else(|| gone.into());
            }
        }
        Ok(frame)
    }
}

#[test]
fn a_lost_stage_is_named_and_stays_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(&folder, "qwen3", "qwen3");
    let n_layers = load(&path, None).info().n_layers;
    let done = |text: &str, numbers: usize| {
        let mut frame = (text.len() as u32).to_le_bytes().to_vec();
        frame.extend(text.as_bytes());
        frame.extend(vec![0; numbers]);
        Some(frame)
    };
    for instead in [
        None,
        Some(Vec::new()),
        done("{", 0),
        done(r#"{"Done":{"held_bytes":0}}"#, 0),
        done(r#"{"Done":{"held_bytes":0}}"#, 7),
        done(r#"{"Failed":{"message":"no memory","part":null}}"#, 0),
    ] {
        let (near, mut far) = channel();
        let mut server = StageServer::new(load(&path, Some(1..n_layers)), "f16");
        std::thread::spawn(move || server.serve(&mut far));
        let faulty = Faulty { inner: Box::new(near), left: 2, instead };
        let stage = Stage::new("number 7", faulty).unwrap();
        let mut runner = load(&path, Some(0..1)).runner().with_stages(vec![stage], "f16").unwrap();
        let sequence = runner.open().unwrap();
        let ask = |runner: &mut Runner, n: usize| {
            let result = runner.forward(&mut [Step::last(sequence, vec![3; n], Want::ArgMax)]);
            result.map_err(|error| breakers_core::chain(&error, ": "))
        };
        ask(&mut runner, 5).unwrap();
        let error = ask(&mut runner, 3).unwrap_err();
        assert!(error.contains("number 7"), "{error}");
        // Nothing has changed here, and nothing can go on.
        assert_eq!(runner.len(sequence).unwrap(), 5);
        let again = ask(&mut runner, 3).unwrap_err();
        assert!(again.contains("number 7"), "{again}");
        assert!(runner.open().is_err());
        runner.close(sequence);
    }
    // Who answers nothing sensible is no stage.
    for frame in [Vec::new(), b"GET / HTTP/1.1".to_vec(), done("{}", 0).unwrap()] {
        let (near, mut far) = channel();
        far.send(&frame).unwrap();
        assert!(matches!(Stage::new("x", near), Err(Error::Stage { .. })));
    }
}

#[test]
fn long_and_cut_frames_are_refused() {
    use std::io::Write as _;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let send = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut transport = Stream::tcp(listener.accept().unwrap().0).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        transport.receive()
    };
    assert_eq!(send(&[3, 0, 0, 0, 7, 8, 9]).unwrap(), [7, 8, 9]);
    let kind = |result: std::io::Result<Vec<u8>>| result.unwrap_err().kind();
    assert_eq!(kind(send(&u32::MAX.to_le_bytes())), std::io::ErrorKind::InvalidData);
    assert_eq!(
        kind(send(&[&(MAX_FRAME as u32).to_le_bytes()[..], &[1; 9]].concat())),
        std::io::ErrorKind::UnexpectedEof
    );
    assert_eq!(kind(send(&[3, 0])), std::io::ErrorKind::UnexpectedEof);
}
