use super::*;
use crate::{Error, Estimate, stats};

fn provenance() -> Provenance {
    Provenance {
        date: "2026-01-31T23:59:59Z".to_owned(),
        command: vec!["spec_decode".to_owned(), "--seed".to_owned(), "7".to_owned()],
        version: "0.1.0".to_owned(),
        git: Some(GitState { commit: "0123abcd".to_owned(), dirty: true }),
        os: "linux, x86_64".to_owned(),
        cpu: Some("A processor".to_owned()),
        n_cpus: Some(2),
        threads: Some(1),
        seeds: vec![7, 8],
        models: vec![ModelFile { name: "tiny".to_owned(), sha256: "ab".repeat(32), bytes: 12 }],
        settings: [("max tokens".to_owned(), "64".to_owned())].into(),
        ..Provenance::default()
    }
}

fn report() -> Report {
    let mut table = Table::new("speed", "Speed");
    table
        .column(Column::new("prompt"))
        .column(Column::new("decode").unit("token/s").decimals(1))
        .column(Column::new("tokens"))
        .column(Column::new("same"));
    let estimate = Estimate { value: 10.0, low: 9.0, high: 11.25, level: 0.95 };
    let rows = [
        vec![Cell::from("chat | a\nb"), estimate.into(), 128usize.into(), true.into()],
        vec![Cell::from("édit"), f64::NAN.into(), Cell::Missing, false.into()],
        vec![Cell::from("code"), 7.04.into(), 5usize.into(), None::<bool>.into()],
    ];
    for row in rows {
        table.row(row).unwrap();
    }
    let mut report = Report::new("A benchmark", provenance());
    report.paragraph("Two programs.").table(table);
    let mut bars = BarChart::new("Speed <&\"'>", "token/s", ["chat", "code & edit"]);
    bars.series("plain", vec![Some(10.0), Some(12.5)]).unwrap();
    bars.series("n-gram <k>", vec![Some(11.0), None]).unwrap();
    report.chart("Decode speed", bars.into());
    let mut lines = LineChart::new("Cost", "rows", "ms");
    lines.series("cpu", vec![(1.0, 2.0), (2.0, 2.5), (16.0, 9.0)]).unwrap();
    report.chart("cost", lines.into());
    report
}

#[test]
fn markdown_is_as_expected() {
    assert_eq!(report().to_markdown(), include_str!("expected.md"));
}

#[test]
fn pages_hold_everything_and_ask_for_nothing() {
    let mut report = report();
    report.paragraph("Less <i>than</i> & more.");
    let page = report.to_html().unwrap();
    assert!(page.contains("<p>Less &lt;i&gt;than&lt;/i&gt; &amp; more.</p>"), "{page}");
    // What is text stays text; a chart's own elements are its own.
    assert!(page.contains("<td>chat | a\nb</td>") && page.contains("<td class=\"n\">10.0 [9.0, 11.2]</td>"));
    assert!(page.contains("Speed &lt;") && !page.contains("<k>"), "{page}");
    assert_eq!((page.matches("<svg").count(), page.matches("<table>").count()), (2, 1));
    assert!(page.contains("<li>command: spec_decode --seed 7</li>"));
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http") && !outside.contains("src=") && !outside.contains("<script"));
}

#[test]
fn json_keeps_types() {
    let json = report().to_json().unwrap();
    let rows = &json["tables"]["speed"]["rows"];
    assert_eq!(rows[0]["decode"], json!({ "value": 10.0, "low": 9.0, "high": 11.25, "level": 0.95 }));
    assert_eq!(rows[1], json!({ "prompt": "édit", "decode": null, "tokens": null, "same": false }));
    assert_eq!(rows[2]["decode"], json!(7.04));
    assert_eq!(json["tables"]["speed"]["columns"][1], json!({ "name": "decode", "unit": "token/s" }));
    assert_eq!(json["charts"], json!(["decode_speed.svg", "cost.svg"]));
    assert_eq!(json["provenance"]["git"], json!({ "commit": "0123abcd", "dirty": true }));
    assert_eq!(json["provenance"]["models"][0]["bytes"], 12);
}

#[test]
fn files_are_written_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new").join("folder");
    for _ in 0..2 {
        let paths = report().write(&out).unwrap();
        let names: Vec<_> = paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["decode_speed.svg", "cost.svg", "report.md", "report.json"]);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 4, "no temporary file stays");
    }
    let read: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(read, report().to_json().unwrap());
}

#[test]
fn a_folder_that_is_a_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(report().write(&file), Err(Error::Write { path, .. }) if path == file));
}

/// All texts of a document that parses as XML.
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let is_text = |n: &roxmltree::Node<'_, '_>| n.has_tag_name(("http://www.w3.org/2000/svg", "text"));
    let texts = document.descendants().filter(is_text);
    texts.map(|n| n.text().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn charts_are_well_formed_and_labeled() {
    let report = report();
    let wanted: [&[&str]; 2] = [
        &["Speed <&\"'>", "token/s", "chat", "code & edit", "plain", "n-gram <k>", "10.0", "12.5", "11.0"],
        &["Cost", "rows", "ms", "cpu"],
    ];
    for ((stem, chart), wanted) in report.charts.iter().zip(wanted) {
        let found = texts(&chart.to_svg(stem).unwrap());
        for text in wanted {
            assert!(found.iter().any(|f| f == text), "{text} is not among {found:?}");
        }
    }
}

#[test]
fn charts_of_odd_data_are_drawn() {
    let no_groups = BarChart::new("t", "v", Vec::<String>::new());
    let mut zeros = BarChart::new("t", "v", ["a"]);
    zeros.series("s", vec![Some(0.0)]).unwrap();
    let mut negative = BarChart::new("t", "v", ["a", "b"]);
    negative.series("s", vec![Some(-3.0), Some(1e12)]).unwrap();
    let no_lines = LineChart::new("t", "x", "y");
    let mut point = LineChart::new("t", "x", "y");
    point.series("s", vec![(5.0, 5.0)]).unwrap();
    let charts: [Chart; 5] = [no_groups.into(), zeros.into(), negative.into(), no_lines.into(), point.into()];
    for chart in charts {
        let svg = chart.to_svg("odd").unwrap();
        assert!(texts(&svg).contains(&"t".to_owned()));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut table = Table::new("t", "T");
    table.column(Column::new("a"));
    assert!(matches!(table.row(vec![]), Err(Error::Length { expected: 1, found: 0, .. })));
    let mut bars = BarChart::new("t", "v", ["a", "b"]);
    assert!(matches!(bars.series("s", vec![None]), Err(Error::Length { expected: 2, found: 1, .. })));
    let nan = bars.series("s", vec![None, Some(f64::NAN)]);
    assert!(matches!(nan, Err(Error::NotFinite { index: 1, .. })));
    let mut lines = LineChart::new("t", "x", "y");
    let infinite = lines.series("s", vec![(0.0, 1.0), (1.0, f64::INFINITY)]);
    assert!(matches!(infinite, Err(Error::NotFinite { index: 3, .. })));

    let mut twice = report();
    twice.chart("COST", lines.into());
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(twice.write(folder.path()), Err(Error::DuplicateName { name }) if name == "cost"));
    let mut twice = report();
    twice.table(Table::new("speed", ""));
    assert!(matches!(twice.to_json(), Err(Error::DuplicateName { name }) if name == "speed"));
}

#[test]
fn a_column_added_late_is_missing_in_earlier_rows() {
    let mut table = Table::new("t", "T");
    table.column(Column::new("a")).row(vec![stats::mean(&[1.0]).unwrap().into()]).unwrap();
    table.column(Column::new("b"));
    assert_eq!(table.rows(), [vec![Cell::Number(1.0), Cell::Missing]]);
}

#[test]
fn a_heat_map_names_and_fills_every_cell() {
    let mut map = HeatMap::new("Found", ["1024", "2048"], ["0 %", "50 %", "100 %"]);
    map.series("all", vec![1.0, 0.5, 0.0, 0.25, 2.0, -1.0]).unwrap();
    map.series("some", vec![0.125; 6]).unwrap();
    assert!(matches!(map.series("few", vec![0.0; 5]), Err(Error::Length { expected: 6, found: 5, .. })));
    assert!(matches!(map.series("bad", vec![f64::NAN; 6]), Err(Error::NotFinite { index: 0, .. })));
    let svg = Chart::from(map).to_svg("map").unwrap();
    let found = texts(&svg);
    for text in ["Found", "all", "some", "1024", "2048", "0 %", "100 %", "50", "25", "12"] {
        assert!(found.contains(&text.to_owned()), "{text}: {found:?}");
    }
    // Both ends of the scale, and nothing beyond them.
    assert!(svg.to_lowercase().contains("#00468c") && svg.to_lowercase().contains("#f0f4f8"));
    Chart::from(HeatMap::new("Nothing", [""; 0], [""; 0])).to_svg("empty").unwrap();
}
