//! Sentence embeddings: compared with sentence-transformers on the real model, and with the formulas in
//! 64-bit floats on a small model made up here; and malicious folders.

use std::collections::BTreeMap;
use std::path::Path;

use breakers_backend::harness::model_path;
use breakers_core::Embedder;
use breakers_embed::Bert;
use breakers_tokenizer::EncodeOptions;
use burn::tensor::Device;
use rand::{RngExt as _, SeedableRng as _};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest difference of a coordinate from sentence-transformers'; vectors have length 1.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Cases {
    max_tokens: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    /// All ids, without truncation.
    ids: Vec<u32>,
    vector: Vec<f32>,
}

fn cases() -> Cases {
    serde_json::from_str(include_str!("data/minilm_cases.json")).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn minilm_equals_sentence_transformers() {
    let Some(folder) = model_path("minilm") else { return };
    let Cases { max_tokens, cases } = cases();
    let bert = Bert::load(folder, &Device::flex()).unwrap();
    assert_eq!(bert.max_tokens(), max_tokens);
    let options = EncodeOptions { add_special: true, parse_special: true };
    for case in &cases {
        assert_eq!(bert.tokenizer().encode(&case.text, options).unwrap(), case.ids, "{:?}", case.text);
    }
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let together = bert.embed(&texts).unwrap();
    let mut worst = 0f32;
    for (case, vector) in cases.iter().zip(&together) {
        let difference = largest_difference(vector, &case.vector);
        assert!(difference <= TOLERANCE, "{:?}: {difference}", case.text);
        worst = worst.max(difference);
        assert_eq!(&bert.embed(&[&case.text]).unwrap()[0], vector, "{:?} alone and in a batch", case.text);
    }
    eprintln!("largest difference from sentence-transformers: {worst:.1e}");
    // More tokens than one pass takes.
    let many: Vec<&str> = texts.iter().copied().cycle().take(6 * texts.len()).collect();
    for (i, vector) in bert.embed(&many).unwrap().iter().enumerate() {
        assert_eq!(vector, &together[i % texts.len()], "text {i} of many");
    }
}

const WIDTH: usize = 16;
const HEADS: usize = 2;
const INNER: usize = 40;
const LAYERS: usize = 2;
const POSITIONS: usize = 12;
const WORDS: [&str; 9] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "##s"];

/// Tensors by name: shape and numbers.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn random_tensors() -> Tensors {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let center = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        // Multiples of 2⁻⁶ below 2, which all element types hold exactly.
        let number = |_| center + f32::from(random.random_range(-40i8..=40)) / 64.0;
        let numbers = (0..shape.iter().product()).map(number).collect();
        tensors.insert(name, (shape.to_vec(), numbers));
    };
    for (name, n_rows) in
        [("word_embeddings", WORDS.len()), ("position_embeddings", POSITIONS), ("token_type_embeddings", 2)]
    {
        add(format!("embeddings.{name}.weight"), &[n_rows, WIDTH]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for (part, n_rows, n_cols) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ] {
            add(name(part) + ".weight", &[n_rows, n_cols]);
            add(name(part) + ".bias", &[n_rows]);
        }
        norms.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(name));
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[WIDTH]);
        add(format!("{norm}.bias"), &[WIDTH]);
    }
    tensors
}

fn write_tensors(folder: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            let bytes = numbers
                .iter()
                .flat_map(|&x| match dtype {
                    Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
                    Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                    Dtype::F64 => f64::from(x).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                })
                .collect();
            (name, shape, bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| (*name, TensorView::new(dtype, shape.to_vec(), data).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn config() -> Value {
    json!({
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "max_position_embeddings": POSITIONS,
        "vocab_size": WORDS.len(), "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    })
}

fn write_json(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// A folder with a valid small model.
fn small_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_json(folder.path(), "config.json", &config());
    let vocab: Value = WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let tokenizer = json!({
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    });
    write_json(folder.path(), "tokenizer.json", &tokenizer);
    write_tensors(folder.path(), &random_tensors(), Dtype::F32);
    folder
}

/// The model exactly as published, in 64-bit floats; returns the mean over the tokens.
fn plain_bert(tensors: &Tensors, ids: &[u32]) -> Vec<f64> {
    let tensor = |name: &str| -> Vec<f64> { tensors[name].1.iter().map(|&x| f64::from(x)).collect() };
    let linear = |x: &[Vec<f64>], name: &str| -> Vec<Vec<f64>> {
        let (weight, bias) = (tensor(&format!("{name}.weight")), tensor(&format!("{name}.bias")));
        let product = |x: &Vec<f64>| {
            let rows = weight.chunks(x.len()).zip(&bias);
            rows.map(|(row, b)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
        };
        x.iter().map(product).collect()
    };
    let norm = |x: Vec<Vec<f64>>, name: &str| -> Vec<Vec<f64>> {
        let (weight, bias) = (tensor(&format!("{name}.weight")), tensor(&format!("{name}.bias")));
        let normalize = |x: Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (variance + 1e-12).sqrt();
            x.iter().zip(&weight).zip(&bias).map(|((x, w), b)| (x - mean) * scale * w + b).collect()
        };
        x.into_iter().map(normalize).collect()
    };
    let add = |a: Vec<Vec<f64>>, b: &[Vec<f64>]| -> Vec<Vec<f64>> {
        a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
    };
    let (words, positions) =
        (tensor("embeddings.word_embeddings.weight"), tensor("embeddings.position_embeddings.weight"));
    let types = tensor("embeddings.token_type_embeddings.weight");
    let embed = |(position, &id): (usize, &u32)| {
        (0..WIDTH)
            .map(|i| words[id as usize * WIDTH + i] + positions[position * WIDTH + i] + types[i])
            .collect()
    };
    let mut x = norm(ids.iter().enumerate().map(embed).collect(), "embeddings.LayerNorm");
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let [q, k, v] =
            ["query", "key", "value"].map(|part| linear(&x, &name(&format!("attention.self.{part}"))));
        let mut attended = vec![vec![0.0; WIDTH]; ids.len()];
        let d = WIDTH / HEADS;
        for head in 0..HEADS {
            let columns = head * d..(head + 1) * d;
            for row in 0..ids.len() {
                let score = |key: usize| {
                    let dot: f64 = columns.clone().map(|i| q[row][i] * k[key][i]).sum();
                    (dot / (d as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..ids.len()).map(score).collect();
                let sum: f64 = scores.iter().sum();
                for i in columns.clone() {
                    attended[row][i] = (0..ids.len()).map(|key| scores[key] / sum * v[key][i]).sum();
                }
            }
        }
        x = norm(
            add(linear(&attended, &name("attention.output.dense")), &x),
            &name("attention.output.LayerNorm"),
        );
        let mut inner = linear(&x, &name("intermediate.dense"));
        inner.iter_mut().flatten().for_each(|x| *x *= normal_distribution(*x));
        x = norm(add(linear(&inner, &name("output.dense")), &x), &name("output.LayerNorm"));
    }
    (0..WIDTH).map(|i| x.iter().map(|row| row[i]).sum::<f64>() / x.len() as f64).collect()
}

/// The normal distribution function, by its Taylor series: Φ(x) = 1/2 + φ(x)·(x + x³/3 + x⁵/(3·5) + …).
fn normal_distribution(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for odd in (3..400).step_by(2) {
        term *= x * x / f64::from(odd);
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The largest difference of a coordinate between 32- and 64-bit floats, for the small model.
const SMALL_TOLERANCE: f64 = 1e-5;

#[test]
fn a_small_model_follows_the_formulas() {
    let folder = small_model();
    let tensors = random_tensors();
    let cases: [(&str, &[u32]); 5] = [
        ("one twos", &[2, 4, 5, 8, 3]),
        ("", &[2, 3]),
        ("what four", &[2, 1, 7, 3]),
        // 12 tokens at most, the last one kept.
        ("one two three four one two three four one two three four", &[2, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 3]),
        ("ones ones", &[2, 4, 8, 4, 8, 3]),
    ];
    let texts = cases.map(|(text, _)| text);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        write_tensors(folder.path(), &tensors, dtype);
        let bert = Bert::load(folder.path(), &Device::flex()).unwrap();
        assert_eq!((bert.dimension(), bert.max_tokens()), (WIDTH, POSITIONS));
        let vectors = bert.embed(&texts).unwrap();
        for ((text, ids), vector) in cases.iter().zip(&vectors) {
            let mean = plain_bert(&tensors, ids);
            let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (ours, exact) in vector.iter().zip(&mean) {
                let difference = (f64::from(*ours) - exact / norm).abs();
                assert!(difference < SMALL_TOLERANCE, "{text:?} in {dtype:?}: {difference}");
            }
            assert_eq!(&bert.embed(&[text]).unwrap()[0], vector, "{text:?} alone and in a batch");
        }
        assert_eq!(bert.embed(&[]).unwrap(), Vec::<Vec<f32>>::new());
    }
    // Without a module that normalizes, the mean itself.
    write_json(folder.path(), "modules.json", &json!([{"type": "a.Transformer"}, {"type": "a.Pooling"}]));
    write_json(folder.path(), "sentence_bert_config.json", &json!({"max_seq_length": 4}));
    let vector =
        Bert::load(folder.path(), &Device::flex()).unwrap().embed(&["four three two one"]).unwrap().remove(0);
    for (ours, exact) in vector.iter().zip(plain_bert(&tensors, &[2, 7, 6, 3])) {
        assert!((f64::from(*ours) - exact).abs() < SMALL_TOLERANCE, "{ours} and {exact}");
    }
}

/// Damages a small model and checks the name of the error that follows.
fn refuse(what: &str, spoil: impl FnOnce(&Path), expected: &str) {
    let folder = small_model();
    spoil(folder.path());
    let error = Bert::load(folder.path(), &Device::flex()).unwrap_err();
    assert!(format!("{error:?}").starts_with(expected), "{what}: {error:?}, expected {expected}");
}

#[test]
fn damaged_folders_are_typed_errors() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let (missing, json) = match name {
            // Another crate reads it, with errors of its own.
            "tokenizer.json" => ("TokenizerJson(Io {", "TokenizerJson(Json {"),
            _ => ("Io {", "Json {"),
        };
        refuse(name, |folder| std::fs::remove_file(folder.join(name)).unwrap(), missing);
        let garbage = |folder: &Path| std::fs::write(folder.join(name), "\u{1}garbage, not a file").unwrap();
        refuse(name, garbage, if name.ends_with("json") { json } else { "Safetensors {" });
    }
    for (name, value) in [
        ("model_type", json!("roberta")),
        ("hidden_act", json!("relu")),
        ("position_embedding_type", json!("relative_key")),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1u64 << 40)),
        ("num_attention_heads", json!(3)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("vocab_size", json!(u64::MAX)),
        ("layer_norm_eps", json!(-1.0)),
    ] {
        let expected = format!("Hyperparameter {{ name: \"{name}\"");
        let spoil = |folder: &Path| {
            let mut config = config();
            config[name] = value;
            write_json(folder, "config.json", &config);
        };
        refuse(name, spoil, &expected);
    }
    let with_config = |field: &'static str, value: Value| {
        move |folder: &Path| {
            let mut config = config();
            config[field] = value;
            write_json(folder, "config.json", &config);
        }
    };
    refuse("too few rows", with_config("vocab_size", json!(8)), "Vocabulary { tokens: 9, rows: 8 }");
    refuse("another width", with_config("hidden_size", json!(32)), "TensorShape {");
    refuse(
        "another layer",
        with_config("num_hidden_layers", json!(3)),
        "MissingTensor { name: \"encoder.layer.2.",
    );
    refuse("no number", with_config("vocab_size", json!("many")), "Json {");
    for (name, value, expected) in [
        (
            "sentence_bert_config.json",
            json!({"max_seq_length": 2}),
            "Hyperparameter { name: \"max_seq_length\"",
        ),
        (
            "sentence_bert_config.json",
            json!({"do_lower_case": true}),
            "Hyperparameter { name: \"do_lower_case\"",
        ),
        ("modules.json", json!([{"type": "a.Dense"}]), "Hyperparameter { name: \"modules.json\""),
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_cls_token": true}),
            "Hyperparameter { name: \"pooling_mode_cls",
        ),
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_mean_tokens": false}),
            "Hyperparameter { name: \"pooling_mode_m",
        ),
    ] {
        let spoil = |folder: &Path| {
            std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
            write_json(folder, name, &value);
        };
        refuse(name, spoil, expected);
    }
}

#[test]
fn damaged_tensors_are_typed_errors() {
    refuse("64-bit floats", |folder| write_tensors(folder, &random_tensors(), Dtype::F64), "TensorType {");
    for name in ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias"] {
        let spoil = |folder: &Path| {
            let mut tensors = random_tensors();
            tensors.remove(name);
            write_tensors(folder, &tensors, Dtype::F32);
        };
        refuse(name, spoil, &format!("MissingTensor {{ name: \"{name}\""));
    }
    let spoil = |folder: &Path| {
        let mut tensors = random_tensors();
        let (shape, _) = tensors.get_mut("encoder.layer.0.intermediate.dense.weight").unwrap();
        shape.reverse();
        write_tensors(folder, &tensors, Dtype::F32);
    };
    refuse("a transposed matrix", spoil, "TensorShape {");
    // A header that is cut off or has one wrong byte is refused, or still gives a working model.
    let folder = small_model();
    let path = folder.path().join("model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for at in (0..header).step_by(7) {
        for damaged in [file[..at].to_vec(), [&file[..at], b"9", &file[at + 1..]].concat()] {
            std::fs::write(&path, damaged).unwrap();
            if let Ok(bert) = Bert::load(folder.path(), &Device::flex()) {
                _ = bert.embed(&["one two"]);
            }
        }
    }
    // NaN is reported by the first computation that uses it.
    let mut tensors = random_tensors();
    tensors.get_mut("embeddings.LayerNorm.bias").unwrap().1[3] = f32::NAN;
    write_tensors(folder.path(), &tensors, Dtype::F32);
    let error = Bert::load(folder.path(), &Device::flex()).unwrap().embed(&["one"]).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
}
