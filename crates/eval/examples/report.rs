#![allow(clippy::print_stdout)] // A command-line program.
//! Writes a report with one chart of each kind: `cargo run -p breakers-eval --example report -- FOLDER`.

use breakers_eval::{BarChart, Cell, Column, LineChart, Provenance, Report, Table};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "target/reports/sample".to_owned());
    let prompts = ["chat", "summarize", "code edit"];
    let (plain, drafted) = ([61.2, 60.8, 59.9], [63.0, 88.4, 131.7]);

    let mut table = Table::new("speed", "Decoding speed");
    table
        .column(Column::new("prompt"))
        .column(Column::new("plain").unit("token/s").decimals(1))
        .column(Column::new("n-gram").unit("token/s").decimals(1));
    for (i, prompt) in prompts.into_iter().enumerate() {
        table.row(vec![Cell::from(prompt), plain[i].into(), drafted[i].into()])?;
    }
    let mut bars = BarChart::new("Decoding speed by prompt", "token/s", prompts);
    bars.series("plain", plain.map(Some).to_vec())?.series("n-gram", drafted.map(Some).to_vec())?;
    let mut lines = LineChart::new("Cost of a forward pass", "rows", "ms");
    lines.series("one thread", vec![(1.0, 16.1), (4.0, 21.0), (16.0, 60.5)])?;
    lines.series("two threads", vec![(1.0, 11.9), (4.0, 13.2), (16.0, 32.0)])?;

    let mut report = Report::new("A sample report", Provenance::collect(None));
    report.paragraph("The figures are made up.").table(table).chart("speed", bars.into());
    report.chart("cost", lines.into());
    for path in report.write(folder)? {
        println!("{}", path.display());
    }
    Ok(())
}
