use serde_json::{Map, Value, json};

use crate::{Error, Estimate, Result};

/// A column of a [`Table`].
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    name: String,
    unit: Option<String>,
    decimals: usize,
}

impl Column {
    /// A column without a unit, whose numbers are shown with two decimals.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), unit: None, decimals: 2 }
    }

    /// Sets the unit of the numbers, which is shown in the heading.
    pub fn unit(self, unit: impl Into<String>) -> Self {
        Self { unit: Some(unit.into()), ..self }
    }

    /// Sets how many decimals are shown; JSON keeps them all.
    pub fn decimals(self, decimals: usize) -> Self {
        Self { decimals, ..self }
    }

    fn heading(&self) -> String {
        match &self.unit {
            Some(unit) => format!("{} ({unit})", self.name),
            None => self.name.clone(),
        }
    }
}

/// One value of a [`Table`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Cell {
    /// Does not apply, or was not measured.
    Missing,
    /// A text.
    Text(String),
    /// A count.
    Integer(i64),
    /// A measurement in the column's unit.
    Number(f64),
    /// A measurement with its confidence interval, in the column's unit.
    Estimate(Estimate),
    /// Shown as yes or no.
    Flag(bool),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Integer(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Cell {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Estimate> for Cell {
    fn from(estimate: Estimate) -> Self {
        Self::Estimate(estimate)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Missing, Into::into)
    }
}

impl Cell {
    fn show(&self, decimals: usize) -> String {
        match self {
            Self::Missing => "–".to_owned(),
            Self::Text(text) => text.clone(),
            Self::Integer(count) => count.to_string(),
            Self::Number(number) => show_number(*number, decimals),
            Self::Estimate(e) => format!(
                "{} [{}, {}]",
                show_number(e.value, decimals),
                show_number(e.low, decimals),
                show_number(e.high, decimals)
            ),
            Self::Flag(true) => "yes".to_owned(),
            Self::Flag(false) => "no".to_owned(),
        }
    }

    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Flag(_))
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Missing => Value::Null,
            Self::Text(text) => json!(text),
            Self::Integer(count) => json!(count),
            // JSON has no NaN; `json!` makes it null.
            Self::Number(number) => json!(number),
            Self::Estimate(e) => json!({
                "value": e.value, "low": e.low, "high": e.high, "level": e.level,
            }),
            Self::Flag(flag) => json!(flag),
        }
    }
}

fn show_number(number: f64, decimals: usize) -> String {
    if number.is_finite() { format!("{number:.decimals$}") } else { "–".to_owned() }
}

/// Typed values in rows and named columns.
///
/// # Example
/// ```
/// use breakers_eval::report::{Cell, Column, Table};
///
/// let mut table = Table::new("speed", "Speed");
/// table.column(Column::new("model")).column(Column::new("decoding").unit("token/s").decimals(1));
/// table.row(vec!["small".into(), 104.25.into()])?.row(vec!["large".into(), Cell::Missing])?;
/// let markdown = table.to_markdown();
/// assert!(markdown.contains("decoding (token/s)") && markdown.contains("104.2"));
/// # Ok::<(), breakers_eval::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    name: String,
    title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table; `name` is its key in JSON, `title` its heading.
    pub fn new(name: impl Into<String>, title: impl Into<String>) -> Self {
        Self { name: name.into(), title: title.into(), columns: Vec::new(), rows: Vec::new() }
    }

    /// The key in JSON.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The heading.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The rows added so far.
    pub fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }

    /// Adds a column; existing rows get [`Cell::Missing`] in it.
    pub fn column(&mut self, column: Column) -> &mut Self {
        self.columns.push(column);
        self.rows.iter_mut().for_each(|row| row.push(Cell::Missing));
        self
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Length`] if it does not have one cell for each column.
    pub fn row(&mut self, cells: Vec<Cell>) -> Result<&mut Self> {
        if cells.len() != self.columns.len() {
            return Err(Error::Length {
                what: "a row of table",
                name: self.name.clone(),
                expected: self.columns.len(),
                found: cells.len(),
            });
        }
        self.rows.push(cells);
        Ok(self)
    }

    /// The table as Markdown, aligned so that it also reads well as plain text.
    pub fn to_markdown(&self) -> String {
        let mut lines = vec![self.columns.iter().map(|c| escape(&c.heading())).collect::<Vec<_>>()];
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns);
            lines.push(cells.map(|(cell, column)| escape(&cell.show(column.decimals))).collect());
        }
        let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0).max(3);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        // Columns that contain text are aligned left, columns of numbers right.
        let left: Vec<bool> =
            (0..self.columns.len()).map(|c| self.rows.iter().any(|row| row[c].is_text())).collect();
        let mut out = String::new();
        for (i, line) in lines.iter().enumerate() {
            for (c, text) in line.iter().enumerate() {
                let padding = " ".repeat(widths[c] - text.chars().count());
                out += &if left[c] { format!("| {text}{padding} ") } else { format!("| {padding}{text} ") };
            }
            out += "|\n";
            if i == 0 {
                for c in 0..self.columns.len() {
                    let dashes = "-".repeat(widths[c] + 1);
                    out += &if left[c] { format!("|{dashes}-") } else { format!("|{dashes}:") };
                }
                out += "|\n";
            }
        }
        out
    }

    pub(super) fn to_html(&self) -> String {
        let heads = self.columns.iter().map(|c| format!("<th>{}</th>", super::html(&c.heading())));
        let mut out = format!("<table>\n<tr>{}</tr>\n", heads.collect::<String>());
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns).map(|(cell, column)| {
                let class = if cell.is_text() { "" } else { " class=\"n\"" };
                format!("<td{class}>{}</td>", super::html(&cell.show(column.decimals)))
            });
            out += &format!("<tr>{}</tr>\n", cells.collect::<String>());
        }
        out + "</table>\n"
    }

    pub(super) fn to_json(&self) -> Value {
        let columns: Vec<Value> =
            self.columns.iter().map(|c| json!({ "name": c.name, "unit": c.unit })).collect();
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let pairs = self.columns.iter().zip(row);
                Value::Object(pairs.map(|(c, cell)| (c.name.clone(), cell.to_json())).collect::<Map<_, _>>())
            })
            .collect();
        json!({ "title": self.title, "columns": columns, "rows": rows })
    }
}

/// Escapes a text for a cell of a Markdown table.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}
