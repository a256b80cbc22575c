//! Reports of benchmarks: text, tables and charts with the provenance of the run, as JSON, Markdown and SVG.

mod chart;
mod heat_map;
mod provenance;
mod table;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Error, Result};

pub use chart::{BarChart, Chart, LineChart};
pub use heat_map::HeatMap;
pub use provenance::{GitState, ModelFile, Provenance};
pub use table::{Cell, Column, Table};

/// What a benchmark found, and where it found it.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    provenance: Provenance,
    paragraphs: Vec<String>,
    tables: Vec<Table>,
    charts: Vec<(String, Chart)>,
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>, provenance: Provenance) -> Self {
        Self {
            title: title.into(),
            provenance,
            paragraphs: Vec::new(),
            tables: Vec::new(),
            charts: Vec::new(),
        }
    }

    /// Adds a paragraph of Markdown, shown before the tables.
    pub fn paragraph(&mut self, markdown: impl Into<String>) -> &mut Self {
        self.paragraphs.push(markdown.into());
        self
    }

    /// Adds a table.
    pub fn table(&mut self, table: Table) -> &mut Self {
        self.tables.push(table);
        self
    }

    /// Adds a chart, which is written to `<name>.svg`, with the name in lower case and all characters but
    /// letters and digits replaced by `_`.
    pub fn chart(&mut self, name: &str, chart: Chart) -> &mut Self {
        self.charts.push((file_stem(name), chart));
        self
    }

    /// The tables added so far.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The report as one JSON object: `title`, `text`, `tables` by name (`columns`, `rows`), `charts` (file
    /// names) and `provenance`.
    ///
    /// # Errors
    /// [`Error::DuplicateName`] if two tables share a name, [`Error::Json`].
    pub fn to_json(&self) -> Result<Value> {
        let mut tables = serde_json::Map::new();
        for table in &self.tables {
            if tables.insert(table.name().to_owned(), table.to_json()).is_some() {
                return Err(Error::DuplicateName { name: table.name().to_owned() });
            }
        }
        let charts: Vec<String> = self.charts.iter().map(|(stem, _)| format!("{stem}.svg")).collect();
        Ok(json!({
            "title": self.title,
            "text": self.paragraphs,
            "tables": tables,
            "charts": charts,
            "provenance": serde_json::to_value(&self.provenance)?,
        }))
    }

    /// The report as Markdown; charts are linked by their file names.
    pub fn to_markdown(&self) -> String {
        let mut out = format!("# {}\n", self.title);
        for paragraph in &self.paragraphs {
            out += &format!("\n{paragraph}\n");
        }
        for table in &self.tables {
            out += &format!("\n## {}\n\n{}", table.title(), table.to_markdown());
        }
        for (stem, chart) in &self.charts {
            let alt = chart.title().replace(['[', ']', '\n'], " ");
            out += &format!("\n![{alt}]({stem}.svg)\n");
        }
        out += &format!("\n## Provenance\n\n{}", self.provenance.to_markdown());
        out
    }

    /// The report as one HTML page with its charts in it, which asks nothing of any server.
    ///
    /// # Errors
    /// [`Error::Chart`].
    pub fn to_html(&self) -> Result<String> {
        let mut body = format!("<h1>{}</h1>\n", html(&self.title));
        for paragraph in &self.paragraphs {
            body += &format!("<p>{}</p>\n", html(&paragraph.replace("**", "")));
        }
        for table in &self.tables {
            body += &format!("<h2>{}</h2>\n{}", html(table.title()), table.to_html());
        }
        for (stem, chart) in &self.charts {
            body += &format!("<figure>{}</figure>\n", chart.to_svg(stem)?);
        }
        let lines = self.provenance.to_markdown();
        let items = lines.lines().map(|line| line.trim_start_matches("- ").replace('`', ""));
        let items: String = items.map(|item| format!("<li>{}</li>\n", html(&item))).collect();
        body += &format!("<h2>Provenance</h2>\n<ul>\n{items}</ul>\n");
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{}</title>\n\
             <style>{STYLE}</style>\n<body>\n{body}</body>\n</html>\n",
            html(&self.title)
        ))
    }

    /// Writes `report.json`, `report.md` and the charts into a folder, which is created if needed, and
    /// returns the files. Each file appears whole or not at all. `report.json` comes last: once it is there,
    /// all of them are.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::File`], [`Error::Chart`], [`Error::DuplicateName`], [`Error::Json`].
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let folder = folder.as_ref();
        let mut files = Vec::new();
        for (stem, chart) in &self.charts {
            let name = format!("{stem}.svg");
            if files.iter().any(|(n, _)| *n == name) {
                return Err(Error::DuplicateName { name: stem.clone() });
            }
            files.push((name, chart.to_svg(stem)?));
        }
        files.push(("report.md".to_owned(), self.to_markdown()));
        let mut json = serde_json::to_string_pretty(&self.to_json()?)?;
        json.push('\n');
        files.push(("report.json".to_owned(), json));

        std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.to_owned(), source })?;
        let mut paths = Vec::new();
        for (name, content) in files {
            let path = folder.join(name);
            breakers_files::replace(&path, content.as_bytes())?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// How pages look.
const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
    table{border-collapse:collapse;display:block;overflow-x:auto}\
    td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}\
    td.n{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1rem 0}svg{max-width:100%;height:auto}";

/// A text as HTML shows it.
fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn file_stem(name: &str) -> String {
    let stem: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    if stem.is_empty() { "chart".to_owned() } else { stem }
}

#[cfg(test)]
mod tests;
