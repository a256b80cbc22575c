//! Grids of colors, side by side.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{Drawn, HEIGHT, INK, WIDTH, check_finite, draw_heading, text};
use crate::{Error, Result};

/// Values between 0 and 1 over two axes, with one grid of colors for each series.
///
/// # Example
/// ```
/// use breakers_eval::report::{Chart, HeatMap};
///
/// let mut found = HeatMap::new("Needles found", ["0 %", "100 %"], ["1,000 tokens", "2,000 tokens"]);
/// // Row by row, from 0 to 1.
/// found.series("plain", vec![1.0, 1.0, 0.5, 1.0])?;
/// assert!(Chart::from(found).to_svg("needles")?.contains("<svg"));
/// # Ok::<(), breakers_eval::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    pub(super) title: String,
    columns: Vec<String>,
    rows: Vec<String>,
    /// `[rows, columns]` each.
    series: Vec<(String, Vec<f64>)>,
}

impl HeatMap {
    /// An empty chart; the labels of columns and rows are shown as given.
    pub fn new(
        title: impl Into<String>,
        columns: impl IntoIterator<Item = impl Into<String>>,
        rows: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            title: title.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            rows: rows.into_iter().map(Into::into).collect(),
            series: Vec::new(),
        }
    }

    /// Adds a grid.
    ///
    /// # Shapes
    /// `values`: `[rows, columns]`; 0 is light and 1 is dark; values outside are shown as the nearer of the
    /// two.
    ///
    /// # Errors
    /// [`Error::Length`] if there is not one value for each cell, [`Error::NotFinite`].
    pub fn series(&mut self, name: impl Into<String>, values: Vec<f64>) -> Result<&mut Self> {
        let (name, expected) = (name.into(), self.rows.len() * self.columns.len());
        if values.len() != expected {
            return Err(Error::Length { what: "series", name, expected, found: values.len() });
        }
        check_finite(values.iter().copied())?;
        self.series.push((name, values));
        Ok(self)
    }
}

pub(super) fn draw(chart: &HeatMap, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    draw_heading(&area, &chart.title, &[])?;
    let (n_columns, n_rows) = (chart.columns.len().max(1) as i32, chart.rows.len().max(1) as i32);
    let n_series = chart.series.len().max(1) as i32;
    // Only the first grid has row labels on its left.
    let (left, top, gap) = (72, 84, 16);
    let width = ((WIDTH as i32 - left - 16) / n_series - gap) / n_columns;
    let height = (HEIGHT as i32 - top - 40) / n_rows;
    let center = |size: f64| text(size).pos(Pos::new(HPos::Center, VPos::Center));
    for (row, name) in chart.rows.iter().enumerate() {
        let style = text(13.0).pos(Pos::new(HPos::Right, VPos::Center));
        let y = top + row as i32 * height + height / 2;
        area.draw(&Text::new(name.clone(), (left - 8, y), style))?;
    }
    for (s, (name, values)) in chart.series.iter().enumerate() {
        let x = left + s as i32 * (n_columns * width + gap);
        area.draw(&Text::new(name.clone(), (x + n_columns * width / 2, top - 14), center(14.0)))?;
        for (column, name) in chart.columns.iter().enumerate() {
            let at = (x + column as i32 * width + width / 2, top + n_rows * height + 14);
            area.draw(&Text::new(name.clone(), at, center(13.0)))?;
        }
        for (at, value) in values.iter().enumerate() {
            let (row, column) = (at as i32 / n_columns, at as i32 % n_columns);
            let (x, y) = (x + column * width, top + row * height);
            area.draw(&Rectangle::new([(x, y), (x + width - 1, y + height - 1)], color(*value).filled()))?;
            let ink = if *value > 0.6 { WHITE } else { INK };
            let style = center(f64::from(width.min(height)).mul_add(0.3, 0.0).clamp(8.0, 14.0)).color(&ink);
            area.draw(&Text::new(format!("{:.0}", 100.0 * value), (x + width / 2, y + height / 2), style))?;
        }
    }
    area.present()?;
    Ok(())
}

/// From nearly white to a dark blue: readable in gray and with all common forms of color blindness.
fn color(value: f64) -> RGBColor {
    let value = value.clamp(0.0, 1.0);
    let mix = |light: f64, dark: f64| (light + (dark - light) * value).round() as u8;
    RGBColor(mix(240.0, 0.0), mix(244.0, 70.0), mix(248.0, 140.0))
}
