//! The chart of a soak: four panels over one axis of time.

use std::ops::Range;

use anyhow::{Result, anyhow};
use mooring_e2e::soak::Report;
use plotters::coord::Shift;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 1000);
/// The width of the legend, right of the panels.
const LEGEND: u32 = 170;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(60, 60, 60);
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A name and its points, in minutes.
type Line = (&'static str, Vec<(f64, f64)>);

/// The SVG.
pub fn draw(report: &Report) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let faults = report.sums.all_faults();
        let title = format!(
            "{} pods, {} faults, at most {} pods at once: what there is at quiet points",
            report.sums.of(&["pods"]),
            faults,
            report.plan.pods
        );
        let style = (FONT, 20).into_text_style(&root).color(&INK);
        let root = root.titled(&title, style).map_err(failed)?;
        let panels = root.split_evenly((4, 1));
        let row = |key: &str, name| -> Line {
            let at = report.samples.iter().map(|one| one.at.as_secs_f64() / 60.0);
            (name, at.zip(report.row(key)).collect())
        };
        let sums = |name, of: &dyn Fn(&mooring_e2e::soak::Sums) -> u64| -> Line {
            let point = |one: &mooring_e2e::soak::Sample| {
                #[expect(clippy::cast_precision_loss)]
                let sum = of(&one.sums) as f64;
                (one.at.as_secs_f64() / 60.0, sum)
            };
            (name, report.samples.iter().map(point).collect())
        };
        let all: [(&str, Vec<Line>); 4] = [
            (
                "memory of a shim, KiB",
                vec![
                    row("shim_rss", "RSS"),
                    row("shim_pss", "PSS"),
                    row("shim_anonymous", "anonymous"),
                ],
            ),
            (
                "shims that stay",
                vec![row("shim_descriptors", "descriptors"), row("shim_threads", "threads")],
            ),
            (
                "the node",
                vec![
                    row("mounts", "mounts"),
                    row("cgroups", "cgroups"),
                    row("processes", "processes"),
                    row("addresses", "addresses"),
                ],
            ),
            (
                "done so far",
                vec![
                    sums("pods", &|one| one.of(&["pods"])),
                    sums("faults", &mooring_e2e::soak::Sums::all_faults),
                    sums("unexplained failures", &|one| one.failures),
                ],
            ),
        ];
        let end = report.samples.last().map_or(1.0, |one| one.at.as_secs_f64() / 60.0);
        for (index, (panel, (name, lines))) in panels.iter().zip(&all).enumerate() {
            draw_panel(panel, name, lines, 0.0..end * 1.01, index + 1 == all.len())?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw_panel(
    area: &Area<'_>,
    name: &str,
    lines: &[Line],
    minutes: Range<f64>,
    last: bool,
) -> Result<()> {
    let (area, legend) = area.split_horizontally(SIZE.0 - LEGEND);
    let most = lines.iter().flat_map(|one| &one.1).map(|one| one.1).fold(1.0, f64::max);
    let digits = usize::from(minutes.end < 10.0);
    let mut chart = ChartBuilder::on(&area)
        .margin_left(12)
        .margin_right(16)
        .margin_top(14)
        .x_label_area_size(if last { 44 } else { 26 })
        .y_label_area_size(72)
        .build_cartesian_2d(minutes, 0.0..most * 1.1)
        .map_err(failed)?;
    let minute = |at: &f64| format!("{at:.digits$}");
    let whole = |value: &f64| format!("{value:.0}");
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.15))
        .axis_style(INK)
        .label_style((FONT, 13, &INK))
        .axis_desc_style((FONT, 14, &INK))
        .x_labels(13)
        .y_labels(6)
        .x_label_formatter(&minute)
        .y_label_formatter(&whole)
        .y_desc(name);
    if last {
        mesh.x_desc("minutes");
    }
    mesh.draw().map_err(failed)?;
    let mut at = 24;
    for ((name, points), colour) in lines.iter().zip(COLOURS) {
        let style = colour.stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(failed)?;
        legend.draw(&PathElement::new(vec![(0, at), (18, at)], style)).map_err(failed)?;
        let last = points.last().map_or(0.0, |one| one.1);
        for (row, text) in [(0, (*name).to_owned()), (15, format!("{last:.0} at the end"))] {
            let style = (FONT, 13).into_text_style(&legend).color(&INK);
            legend.draw(&Text::new(text, (26, at - 8 + row), style)).map_err(failed)?;
        }
        at += 42;
    }
    Ok(())
}

fn failed<E: std::error::Error>(error: E) -> anyhow::Error {
    anyhow!("{error}")
}
