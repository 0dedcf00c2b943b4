//! hop.svg: for each case a panel with its own scale, for each subject a bar of
//! user (dark) and system (light) CPU a request.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::case::Case;
use crate::report::Summary;
use crate::subjects::Subject;

const COLUMNS: usize = 4;
const PANEL: (i32, i32) = (300, 230);
const HEADER: i32 = 60;
/// Around the bars of a panel: left, top, bottom.
const MARGINS: (i32, i32, i32) = (20, 46, 30);
const INK: RGBColor = RGBColor(34, 34, 34);
const FAINT: RGBColor = RGBColor(205, 205, 205);
/// Opacity of the system part.
const LIGHT: f64 = 0.45;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub fn draw(summaries: &[Summary], path: &Path) -> Result<()> {
    let cases: Vec<Case> = Case::ALL
        .into_iter()
        .filter(|&case| of(summaries, case).next().is_some())
        .collect();
    let (columns, rows) = (cases.len().min(COLUMNS), cases.len().div_ceil(COLUMNS));
    // Wide enough for the title, whatever was asked for.
    let width = (PANEL.0 * i32::try_from(columns)?).max(560);
    let size = (
        u32::try_from(width)?,
        u32::try_from(HEADER + PANEL.1 * i32::try_from(rows)?)?,
    );
    paint(summaries, &cases, path, size)
        .ok()
        .with_context(|| format!("drawing {}", path.display()))
}

fn of(summaries: &[Summary], case: Case) -> impl Iterator<Item = &Summary> {
    summaries.iter().filter(move |summary| summary.case == case)
}

fn paint(
    summaries: &[Summary],
    cases: &[Case],
    path: &Path,
    size: (u32, u32),
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let left = Pos::new(HPos::Left, VPos::Center);
    let title = ("sans-serif", 20).into_font().color(&INK).pos(left);
    root.draw_text("CPU of one proxy hop, µs a request", &title, (20, 22))?;
    let note = ("sans-serif", 13).into_font().color(&INK).pos(left);
    root.draw_text(
        "dark: user, light: system; lower is better; each panel has its own scale",
        &note,
        (20, 44),
    )?;
    for (index, &case) in cases.iter().enumerate() {
        let x = PANEL.0 * i32::try_from(index % COLUMNS)?;
        let y = HEADER + PANEL.1 * i32::try_from(index / COLUMNS)?;
        let panel = root.clone().shrink((x, y), (PANEL.0, PANEL.1));
        let bars: Vec<&Summary> = of(summaries, case).collect();
        paint_panel(&panel, case, &bars)?;
    }
    root.present()?;
    Ok(())
}

fn paint_panel(
    panel: &Area<'_>,
    case: Case,
    bars: &[&Summary],
) -> Result<(), Box<dyn std::error::Error>> {
    let (left, top, bottom) = MARGINS;
    let (width, base) = (PANEL.0 - 2 * left, PANEL.1 - bottom);
    let highest = bars
        .iter()
        .map(|bar| bar.cpu_us())
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = f64::from(base - top) / highest;
    let heading = ("sans-serif", 15)
        .into_font()
        .style(FontStyle::Bold)
        .color(&INK);
    panel.draw_text(
        heading_text(case),
        &heading.pos(Pos::new(HPos::Left, VPos::Center)),
        (left, 14),
    )?;
    panel.draw(&PathElement::new(
        [(left, base), (left + width, base)],
        FAINT,
    ))?;
    let subjects: Vec<Subject> = Subject::ALL
        .into_iter()
        .filter(|subject| subject.is_beside(case.is_pair()))
        .collect();
    let step = width / i32::try_from(subjects.len())?;
    let centred = Pos::new(HPos::Center, VPos::Center);
    let label = ("sans-serif", 12).into_font().color(&INK).pos(centred);
    for (index, subject) in subjects.into_iter().enumerate() {
        let from = left + step * i32::try_from(index)? + step / 8;
        let (to, middle) = (from + step * 3 / 4, from + step * 3 / 8);
        panel.draw_text(subject.name(), &label, (middle, base + 12))?;
        let Some(bar) = bars.iter().find(|bar| bar.subject == subject) else {
            panel.draw_text("n/a", &label, (middle, base - 10))?;
            continue;
        };
        let colour = colour(subject);
        let user = base - (bar.cpu_user_us * scale).round() as i32;
        let system = user - (bar.cpu_sys_us * scale).round() as i32;
        panel.draw(&Rectangle::new([(from, user), (to, base)], colour.filled()))?;
        panel.draw(&Rectangle::new(
            [(from, system), (to, user)],
            colour.mix(LIGHT).filled(),
        ))?;
        panel.draw_text(&figure(bar.cpu_us()), &label, (middle, system - 9))?;
    }
    Ok(())
}

fn heading_text(case: Case) -> &'static str {
    match case {
        Case::TcpStream => "tcp-1g (µs a MiB)",
        Case::Idle => "idle-10k (µs a connection)",
        _ => case.name(),
    }
}

fn figure(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Told apart with the common kinds of colour blindness too (Okabe and Ito).
fn colour(subject: Subject) -> RGBColor {
    match subject {
        Subject::Floor => RGBColor(110, 110, 110),
        Subject::Weft => RGBColor(213, 94, 0),
        Subject::Nginx => RGBColor(0, 158, 115),
        Subject::Haproxy => RGBColor(0, 114, 178),
        Subject::Envoy => RGBColor(150, 80, 140),
        Subject::EnvoyH2 => RGBColor(204, 121, 167),
    }
}
