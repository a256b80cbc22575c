//! Charts as SVG, drawn with `plotters`. No font or image library is linked; the viewer renders the text.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::heat_map::{self, HeatMap};
use crate::{Error, Result};

pub(super) const WIDTH: u32 = 880;
pub(super) const HEIGHT: u32 = 440;
const FONT: &str = "sans-serif";
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Colors that are distinguishable with all common forms of color blindness (Okabe and Ito, "Color universal
/// design", 2008).
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x00, 0x00),
];

/// Groups of bars, one bar for each series.
///
/// # Example
/// ```
/// use breakers_eval::report::{BarChart, Chart};
///
/// let mut bars = BarChart::new("Decoding", "token/s", ["code", "prose"]);
/// bars.series("plain", vec![Some(28.3), Some(28.1)])?.series("drafted", vec![Some(61.0), None])?;
/// assert!(Chart::from(bars).to_svg("decoding")?.contains("<svg"));
/// # Ok::<(), breakers_eval::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    title: String,
    value_label: String,
    groups: Vec<String>,
    series: Vec<(String, Vec<Option<f64>>)>,
    decimals: usize,
}

impl BarChart {
    /// An empty chart; `value_label` names the values and their unit.
    pub fn new(
        title: impl Into<String>,
        value_label: impl Into<String>,
        groups: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            title: title.into(),
            value_label: value_label.into(),
            groups: groups.into_iter().map(Into::into).collect(),
            series: Vec::new(),
            decimals: 1,
        }
    }

    /// Sets how many decimals the figures above the bars have.
    pub fn decimals(self, decimals: usize) -> Self {
        Self { decimals, ..self }
    }

    /// Adds one bar to each group; `None` leaves a gap.
    ///
    /// # Errors
    /// [`Error::Length`] if there is not one value for each group, [`Error::NotFinite`].
    pub fn series(&mut self, name: impl Into<String>, values: Vec<Option<f64>>) -> Result<&mut Self> {
        let name = name.into();
        if values.len() != self.groups.len() {
            let (expected, found) = (self.groups.len(), values.len());
            return Err(Error::Length { what: "series", name, expected, found });
        }
        check_finite(values.iter().map(|v| v.unwrap_or(0.0)))?;
        self.series.push((name, values));
        Ok(self)
    }
}

/// Lines through points, one for each series.
///
/// # Example
/// ```
/// use breakers_eval::report::{Chart, LineChart};
///
/// let mut lines = LineChart::new("Decoding", "depth in tokens", "token/s");
/// lines.series("f16", vec![(0.0, 202.0), (8000.0, 91.0)])?;
/// assert!(Chart::from(lines).to_svg("decoding")?.contains("<svg"));
/// # Ok::<(), breakers_eval::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    title: String,
    x_label: String,
    y_label: String,
    series: Vec<(String, Vec<(f64, f64)>)>,
}

impl LineChart {
    /// An empty chart; the labels name what the axes show, with units.
    pub fn new(title: impl Into<String>, x_label: impl Into<String>, y_label: impl Into<String>) -> Self {
        Self { title: title.into(), x_label: x_label.into(), y_label: y_label.into(), series: Vec::new() }
    }

    /// Adds a line through points (x, y), in the order given.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn series(&mut self, name: impl Into<String>, points: Vec<(f64, f64)>) -> Result<&mut Self> {
        check_finite(points.iter().flat_map(|&(x, y)| [x, y]))?;
        self.series.push((name.into(), points));
        Ok(self)
    }
}

/// A chart of a report.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Chart {
    /// Groups of bars.
    Bar(BarChart),
    /// Lines.
    Line(LineChart),
    /// A grid of colors.
    Heat(HeatMap),
}

impl From<BarChart> for Chart {
    fn from(chart: BarChart) -> Self {
        Self::Bar(chart)
    }
}

impl From<LineChart> for Chart {
    fn from(chart: LineChart) -> Self {
        Self::Line(chart)
    }
}

impl From<HeatMap> for Chart {
    fn from(chart: HeatMap) -> Self {
        Self::Heat(chart)
    }
}

impl Chart {
    /// The heading.
    pub fn title(&self) -> &str {
        match self {
            Self::Bar(chart) => &chart.title,
            Self::Line(chart) => &chart.title,
            Self::Heat(chart) => &chart.title,
        }
    }

    /// The chart as an SVG document; `name` is for error messages.
    ///
    /// # Errors
    /// [`Error::Chart`].
    pub fn to_svg(&self, name: &str) -> Result<String> {
        let mut svg = String::new();
        let drawn = match self {
            Self::Bar(chart) => draw_bars(chart, &mut svg),
            Self::Line(chart) => draw_lines(chart, &mut svg),
            Self::Heat(chart) => heat_map::draw(chart, &mut svg),
        };
        drawn.map_err(|e| Error::Chart { name: name.to_owned(), reason: e.to_string() })?;
        Ok(svg)
    }
}

pub(super) type Drawn<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw_bars(chart: &BarChart, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let names: Vec<&str> = chart.series.iter().map(|(name, _)| name.as_str()).collect();
    let body = draw_heading(&area, &chart.title, &names)?;
    let n_groups = chart.groups.len().max(1);
    let values = chart.series.iter().flat_map(|(_, values)| values.iter().flatten().copied());
    let (low, high) = range(values.chain([0.0]), 0.08);
    let mut plot = ChartBuilder::on(&body)
        .margin_right(16)
        .set_label_area_size(LabelAreaPosition::Left, 72)
        .set_label_area_size(LabelAreaPosition::Bottom, 34)
        .build_cartesian_2d(0.0..n_groups as f64, low..high)?;
    draw_mesh(&mut plot, None, &chart.value_label)?;

    let n_series = chart.series.len().max(1) as f64;
    let (gap, bar) = (0.2, 0.8 / n_series);
    // Figures are readable as long as a bar is about as wide as four digits.
    let pixels = bar * f64::from(WIDTH - 88) / n_groups as f64;
    let size = (pixels / 2.6).clamp(0.0, 13.0);
    for (s, (_, values)) in chart.series.iter().enumerate() {
        let color = PALETTE[s % PALETTE.len()];
        for (g, value) in values.iter().enumerate() {
            let Some(value) = *value else { continue };
            let left = g as f64 + gap / 2.0 + s as f64 * bar;
            let (x0, x1) = (left + 0.04 * bar, left + 0.96 * bar);
            plot.draw_series([Rectangle::new([(x0, 0.0), (x1, value)], color.filled())])?;
            if size >= 8.0 {
                let (vertical, shift) = if value < 0.0 { (VPos::Top, 3) } else { (VPos::Bottom, -3) };
                let (x, y) = plot.backend_coord(&((x0 + x1) / 2.0, value));
                let style = text(size).pos(Pos::new(HPos::Center, vertical));
                let figure = format!("{value:.*}", chart.decimals);
                area.draw(&Text::new(figure, (x, y + shift), style))?;
            }
        }
    }
    for (g, group) in chart.groups.iter().enumerate() {
        let (x, _) = plot.backend_coord(&(g as f64 + 0.5, low));
        let style = text(14.0).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(group.clone(), (x, HEIGHT as i32 - 26), style))?;
    }
    area.present()?;
    Ok(())
}

fn draw_lines(chart: &LineChart, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let names: Vec<&str> = chart.series.iter().map(|(name, _)| name.as_str()).collect();
    let body = draw_heading(&area, &chart.title, &names)?;
    let points = || chart.series.iter().flat_map(|(_, points)| points.iter().copied());
    let (left, right) = range(points().map(|p| p.0), 0.0);
    let (low, high) = range(points().map(|p| p.1), 0.08);
    let mut plot = ChartBuilder::on(&body)
        .margin_right(24)
        .set_label_area_size(LabelAreaPosition::Left, 72)
        .set_label_area_size(LabelAreaPosition::Bottom, 52)
        .build_cartesian_2d(left..right, low..high)?;
    draw_mesh(&mut plot, Some(&chart.x_label), &chart.y_label)?;
    for (s, (_, points)) in chart.series.iter().enumerate() {
        let color = PALETTE[s % PALETTE.len()];
        plot.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        plot.draw_series(points.iter().map(|&p| Circle::new(p, 3, color.filled())))?;
    }
    area.present()?;
    Ok(())
}

/// Draws the title and the legend, and returns what is left of the area.
pub(super) fn draw_heading<'a>(area: &Area<'a>, title: &str, names: &[&str]) -> Drawn<Area<'a>> {
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (20, 14), text(20.0)))?;
    let mut x = 20;
    for (s, name) in names.iter().enumerate() {
        let color = PALETTE[s % PALETTE.len()];
        area.draw(&Rectangle::new([(x, 48), (x + 14, 60)], color.filled()))?;
        area.draw(&Text::new((*name).to_owned(), (x + 20, 47), text(14.0)))?;
        // There are no font metrics here; 8 pixels per character is ample at 14 points.
        x += 44 + 8 * name.chars().count() as i32;
    }
    Ok(area.margin(76, 4, 12, 4))
}

fn draw_mesh(plot: &mut Plot<'_, '_>, x_label: Option<&str>, y_label: &str) -> Drawn {
    let mut mesh = plot.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK.mix(0.6))
        .label_style(text(13.0))
        .axis_desc_style(text(14.0))
        .y_desc(y_label)
        .y_labels(9)
        .y_label_formatter(&|y| tick(*y))
        .x_label_formatter(&|x| tick(*x));
    match x_label {
        Some(label) => mesh.x_desc(label).x_labels(9),
        None => mesh.disable_x_mesh().x_labels(0),
    };
    mesh.draw()?;
    Ok(())
}

pub(super) fn text(size: f64) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// A tick without superfluous zeros.
fn tick(value: f64) -> String {
    let magnitude = value.abs();
    let shown = if magnitude != 0.0 && !(1e-3..1e7).contains(&magnitude) {
        return format!("{value:.1e}");
    } else {
        format!("{value:.4}")
    };
    let shown = shown.trim_end_matches('0').trim_end_matches('.');
    if shown == "-0" { "0".to_owned() } else { shown.to_owned() }
}

/// The range of some values, widened by a share of itself; never empty.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> (f64, f64) {
    let (mut low, mut high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    if high - low <= f64::EPSILON * high.abs().max(low.abs()) {
        let half = if high == 0.0 { 0.5 } else { high.abs() / 2.0 };
        return (low - half, high + half);
    }
    let margin = (high - low) * margin;
    // An edge at zero stays at zero.
    high += if high == 0.0 { 0.0 } else { margin };
    low -= if low == 0.0 { 0.0 } else { margin };
    (low, high)
}

pub(super) fn check_finite(values: impl Iterator<Item = f64>) -> Result<()> {
    match values.enumerate().find(|(_, v)| !v.is_finite()) {
        Some((index, value)) => Err(Error::NotFinite { index, value }),
        None => Ok(()),
    }
}
