//! Jobs as words, and the table of methods behind them.

use breakers_gguf::{Encoding, Format, GroupFormat};
use breakers_quant::Error;
use breakers_quant::job::{Formats, JobSpec, Rotate};
use breakers_quant::methods::{METHODS, named};
use breakers_quant::quantizer::WeightMatrix;
use breakers_quant::statistics::{Statistics, StatisticsConfig};

use crate::support::Random;

#[test]
fn every_method_of_the_table_quantizes_by_its_name_and_stands_in_the_documentation() {
    let mut random = Random::new(3);
    let mut floats = |n: usize| -> Vec<f32> { (0..n).map(|_| random.float()).collect() };
    let (values, inputs) = (floats(8 * 128), floats(64 * 128));
    let weights = WeightMatrix::new(&values, 8, 128).unwrap();
    let int4 = Encoding::Groups(GroupFormat::Affine { bits: 4, group: 64 });
    let mut table = String::new();
    for entry in METHODS {
        let method = named(entry.name).unwrap();
        assert_eq!(method.name(), entry.name);
        let config = method.needs();
        let statistics = config.map(|config| {
            let mut statistics = Statistics::new(128, config);
            statistics.observe(&inputs).unwrap();
            statistics
        });
        method.check(int4).unwrap();
        let whole = method.quantize(&weights, int4, statistics.as_ref()).unwrap();
        assert!(whole.report.weight_error < 0.02, "{}: {}", entry.name, whole.report.weight_error);
        assert_eq!(whole.report.method, format!("{} int4-g64", entry.name));
        // What is prepared for a place gives the same.
        if let Some(statistics) = &statistics
            && let Some(prepared) = method.prepare(statistics).unwrap()
        {
            let found = prepared.quantize(&weights, int4, Some(statistics)).unwrap();
            assert_eq!(found.matrix.to_f32(), whole.matrix.to_f32(), "{}", entry.name);
        }
        let job: JobSpec = format!("{}:int4-g64", entry.name).parse().unwrap();
        assert_eq!(job.to_string(), format!("{}:int4-g64", entry.name));
        let reads = match config {
            None => "no text",
            Some(config) if config == StatisticsConfig::default() => "mean squares of the inputs",
            Some(config) if config.hessian => "second moments of pairs of inputs",
            Some(_) => "a sample of the inputs",
        };
        table += &format!("| `{}` | {} | {reads} |\n", entry.name, entry.paper);
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/quantization.md");
    let page = std::fs::read_to_string(page).unwrap();
    let expected = format!("| method | paper | needs |\n|---|---|---|\n{table}\n");
    assert!(page.contains(&expected), "docs/quantization.md lacks:\n{expected}");
    let names: std::collections::BTreeSet<&str> = METHODS.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), METHODS.len());
    let Err(Error::Words { what: "method", expected, found }) = named("magic") else { panic!() };
    assert!(found == "magic" && names.iter().all(|name| expected.contains(name)), "{expected}");
}

#[test]
fn words_become_jobs() {
    let job = |words: &str| words.parse::<JobSpec>().unwrap();
    let found = job("gptq+rotation:q3_k");
    assert_eq!(found.rotation, Some(Rotate::Folded { seed: 1 }));
    assert_eq!(
        (found.formats, found.quantizer.name()),
        (Formats::Uniform(Format::Q3_K.into()), "gptq".into())
    );
    assert_eq!(job("imatrix:like=a:b.gguf").formats, Formats::Like("a:b.gguf".to_owned()));
    let found = job("gptq:budget=400");
    let among = [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q6_K].map(Encoding::from).to_vec();
    assert_eq!(found.extension(), "gguf");
    assert_eq!(found.formats, Formats::Budget { megabytes: 400, among });
    let found = job("gptq+online-7:q4_0");
    assert_eq!((found.rotation, found.extension()), (Some(Rotate::Online { seed: 7 }), "safetensors"));
    let found = job("rtn:budget=40:nf4+q2_k");
    assert!(found.needs_text() && found.extension() == "safetensors");
    let among = vec![GroupFormat::Nf4.into(), Format::Q2_K.into()];
    assert_eq!(found.formats, Formats::Budget { megabytes: 40, among });
    let found = job("hqq:int4-g128");
    assert_eq!(found.formats, Formats::Uniform(GroupFormat::Affine { bits: 4, group: 128 }.into()));
    assert!(found.quantizer.name() == "hqq" && found.extension() == "safetensors" && !found.needs_text());
    let found = job("gptq+tie:like=a.gguf,ffn_up=IQ4_NL,blk.3.ffn_up=q2_k");
    let expected =
        [("ffn_up", Format::IQ4_NL), ("blk.3.ffn_up", Format::Q2_K)].map(|(a, b)| (a.to_owned(), b.into()));
    assert!(found.tie && found.rotation.is_none() && found.exceptions == expected);
    assert_eq!(found.formats, Formats::Like("a.gguf".to_owned()));
}

#[test]
fn jobs_are_written_as_they_are_read() {
    for words in [
        "rtn:Q4_0",
        "gptq+rotation:Q3_K",
        "gptq+rotation-9+tie:Q3_K",
        "awq+online-7:nf4",
        "imatrix+tie:like=a.gguf,ffn_up=IQ4_NL,blk.3.=Q2_K",
        "gptq:budget=400",
        "gptq:budget=400:nf4+Q2_K",
    ] {
        assert_eq!(words.parse::<JobSpec>().unwrap().to_string(), words);
    }
    // Any order, any case.
    assert_eq!("gptq+tie+online-1:q4_k".parse::<JobSpec>().unwrap().to_string(), "gptq+online+tie:Q4_K");
}

#[test]
fn words_that_mean_nothing_are_refused_by_name() {
    for (words, part, wrong, help) in [
        ("", "job", "", "METHOD:FORMAT"),
        ("gptq", "job", "gptq", "METHOD:FORMAT"),
        ("magic:Q4_0", "method", "magic", "gptq"),
        (":Q4_0", "method", "", "gptq"),
        ("gptq+magic:Q4_0", "addition to a method", "magic", "online"),
        ("gptq+rotation-x:Q4_0", "addition to a method", "rotation-x", "rotation"),
        ("gptq+tie-1:Q4_0", "addition to a method", "tie-1", "tie"),
        ("gptq+rotation+online:Q4_0", "second addition", "online", "one rotation"),
        ("gptq+tie+tie:Q4_0", "second addition", "tie", "tie once"),
        ("gptq:Q9", "format", "Q9", "int"),
        ("gptq:", "format", "", "Q4_K"),
        ("gptq:Q4_0,x", "exception", "x", "NAME=FORMAT"),
        ("gptq:Q4_0,=Q4_0", "exception", "=Q4_0", "NAME=FORMAT"),
        ("gptq:Q4_0,x=y", "format", "y", "Q4_K"),
        ("gptq:budget=x", "budget", "x", "megabytes"),
        ("gptq:budget=4:Q9", "format", "Q9", "nf4"),
    ] {
        let Err(Error::Words { what, expected, found }) = words.parse::<JobSpec>() else { panic!("{words}") };
        assert_eq!((what, &*found), (part, wrong), "{words}");
        assert!(expected.contains(help), "{words}: {expected}");
    }
}

#[test]
fn bits_become_formats() {
    let words = |method, bits, own| JobSpec::of_bits(method, bits, own).map(|job| job.to_string());
    assert_eq!(words("gptq+rotation", "3", false).unwrap(), "gptq+rotation:Q3_K");
    assert_eq!(words("gptq", "8", false).unwrap(), "gptq:Q8_0");
    assert_eq!(words("awq", "7", true).unwrap(), "awq:int7-g64");
    assert_eq!(words("hqq", "4", false).unwrap(), "hqq:int4-g64");
    assert_eq!(words("rtn", "nf4", false).unwrap(), "rtn:nf4");
    for (method, bits, own) in [
        ("rtn", "7", false),
        ("rtn", "9", true),
        ("rtn", "nf5", false),
        ("nearest", "4", false),
        ("rtn:like=x", "4", false),
    ] {
        assert!(matches!(words(method, bits, own), Err(Error::Words { .. })), "{method} {bits}");
    }
}
