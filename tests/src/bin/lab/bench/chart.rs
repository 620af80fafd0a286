//! The chart of a run: a bar for each ratio, its interval, and where the floor is.

use anyhow::{Result, anyhow};
use mooring_e2e::bench::{Row, Section, median};
use mooring_e2e::suite::Handler;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::Run;
use super::text::label;

const WIDTH: u32 = 960;
/// Of a bar with its surroundings.
const LINE: i32 = 17;
/// Of what is left of the bars.
const NAMES: i32 = 330;
/// Of what is above them.
const TOP: i32 = 92;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(60, 60, 60);
const FLOOR: RGBColor = RGBColor(204, 121, 167);
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(0, 158, 115), RGBColor(213, 94, 0)];
/// The right end of the axis; what is longer is cut and says its number.
const MOST: f64 = 1.4;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The SVG.
pub fn draw(run: &Run) -> Result<String> {
    let plan = &run.plan;
    let first = *plan.handlers.first().ok_or_else(|| anyhow!("no handler"))?;
    let others = &plan.handlers[1..];
    let with_ratio = |section: Section| -> Vec<&Row> {
        let has = |row: &&Row| others.iter().any(|one| row.ratio(*one, first, plan.seed).is_some());
        run.table.of(section).filter(has).collect()
    };
    let sections: Vec<_> = Section::ALL
        .into_iter()
        .map(|section| (section, with_ratio(section)))
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    let ratios = |row: &Row| -> Vec<_> {
        let colours = others.iter().zip(COLOURS.into_iter().cycle());
        let ratio =
            |(one, colour): (&Handler, _)| Some((*one, colour, row.ratio(*one, first, plan.seed)?));
        colours.filter_map(ratio).collect()
    };
    let bars: usize = sections.iter().flat_map(|(_, rows)| rows).map(|row| ratios(row).len()).sum();
    let height = TOP + LINE * i32::try_from(bars)? + 2 * LINE * i32::try_from(sections.len())? + 20;
    let mut svg = String::new();
    {
        let size = (WIDTH, u32::try_from(height)?);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        head(&root, first, others)?;
        axis(&root, height)?;
        let mut y = TOP;
        for (section, rows) in sections {
            write(&root, section.title(), (12, y + 4), 14)?;
            y += LINE + 6;
            for row in rows {
                write(&root, &row.name, (24, y), 12)?;
                let begin = y;
                for (handler, colour, ratio) in ratios(row) {
                    let top = y;
                    y += LINE;
                    bar(&root, top, ratio.value, colour)?;
                    if row.of(handler).len() > 1 {
                        whisker(&root, top, x(ratio.low), x(ratio.high))?;
                    }
                    let end = x(ratio.value.max(ratio.high).min(MOST)) + 6;
                    write(&root, &format!("{:.2}", ratio.value), (end, top), 12)?;
                }
                let floor = median(&row.floor).zip(median(row.of(first)));
                if let Some((floor, peer)) = floor.filter(|(_, peer)| *peer > 0.0) {
                    let at = x((floor / peer).min(MOST));
                    line(&root, [(at, begin - 1), (at, y - 4)], FLOOR, 3)?;
                }
            }
            y += LINE - 6;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn head(root: &Area<'_>, first: Handler, others: &[Handler]) -> Result<()> {
    let title =
        format!("Medians and idle pods: 1 is podsandbox with {}; less is better", label(first));
    write(root, &title, (12, 10), 18)?;
    let mut at = 24;
    for (handler, colour) in others.iter().zip(COLOURS) {
        let corners = [(at, 42), (at + 22, 53)];
        root.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)?;
        write(root, label(*handler), (at + 30, 40), 13)?;
        at += 100;
    }
    whisker(root, 42, at, at + 22)?;
    write(root, "the middle 95 % of its bootstrap", (at + 30, 40), 13)?;
    at += 250;
    line(root, [(at, 40), (at, 56)], FLOOR, 3)?;
    write(
        root,
        "the floor: the same plugins and calls done bare, with the node's runtime",
        (at + 10, 40),
        13,
    )
}

/// Where a ratio is.
fn x(ratio: f64) -> i32 {
    let room = f64::from(i32::try_from(WIDTH).unwrap_or(i32::MAX) - NAMES - 60);
    #[expect(clippy::cast_possible_truncation)]
    let right = (ratio.clamp(0.0, MOST) / MOST * room).round() as i32;
    NAMES + right
}

fn axis(root: &Area<'_>, height: i32) -> Result<()> {
    for tenth in (0..=14).step_by(2) {
        let ratio = f64::from(tenth) / 10.0;
        let at = x(ratio);
        let (colour, width) = if tenth == 10 { (INK, 2) } else { (RGBColor(225, 225, 225), 1) };
        line(root, [(at, TOP - 12), (at, height - 12)], colour, width)?;
        write(root, &format!("{ratio:.1}"), (at - 8, TOP - 26), 12)?;
    }
    Ok(())
}

fn bar(root: &Area<'_>, top: i32, ratio: f64, colour: RGBColor) -> Result<()> {
    let corners = [(x(0.0), top), (x(ratio), top + LINE - 5)];
    root.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)
}

fn whisker(root: &Area<'_>, top: i32, low: i32, high: i32) -> Result<()> {
    let middle = top + (LINE - 5) / 2;
    line(root, [(low, middle), (high, middle)], INK, 1)?;
    for end in [low, high] {
        line(root, [(end, middle - 3), (end, middle + 3)], INK, 1)?;
    }
    Ok(())
}

fn line(root: &Area<'_>, points: [(i32, i32); 2], colour: RGBColor, width: u32) -> Result<()> {
    let element = PathElement::new(points.to_vec(), colour.stroke_width(width));
    root.draw(&element).map_err(failed)
}

fn write(root: &Area<'_>, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    let style = (FONT, size).into_text_style(root).color(&INK);
    root.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

fn failed<E: std::error::Error>(error: E) -> anyhow::Error {
    anyhow!("{error}")
}
