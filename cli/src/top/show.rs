//! A summary as a person or a script sees it. Pure.

use std::time::Duration;

use super::golden::{Golden, Row, Summary};
use crate::terminal::{BOLD, Cell, DIM, GREEN, PLAIN, Paint, RED, Table, YELLOW};

const COLUMNS: [&str; 7] = [
    "SUCCESS",
    "RATE",
    "P50",
    "P95",
    "P99",
    "CONNECTIONS",
    "RETRIES",
];
/// Lines that a section has beside its rows.
const SECTION_LINES: usize = 2;

/// The screen: as many of the busiest as there is room for.
pub fn screen(summary: &Summary, interval: Duration, paint: Paint, height: usize) -> Vec<String> {
    let mut lines = vec![paint.line(&[
        (BOLD, "weft top".to_owned()),
        (
            PLAIN,
            format!("  {} proxies, every {interval:?}", summary.proxies),
        ),
    ])];
    let sections = [
        ("SERVICE", &summary.services),
        ("FROM", &summary.edges),
        ("INBOUND", &summary.inbound),
    ];
    let unread = summary.unread.len().min(3) + usize::from(!summary.unread.is_empty());
    let mut room = height.saturating_sub(lines.len() + unread + 1);
    for (index, (first, rows)) in sections.into_iter().enumerate() {
        // What one does not need the next ones have.
        let share = room / (sections.len() - index);
        let most = share.saturating_sub(SECTION_LINES + 1);
        let section = table(first, rows, most).lines(paint);
        lines.push(String::new());
        lines.extend(section);
        if rows.len() > most {
            lines.push(paint.line(&[(DIM, format!("… and {} more", rows.len() - most))]));
        }
        room = room.saturating_sub(SECTION_LINES + rows.len().min(most + 1));
    }
    if !summary.unread.is_empty() {
        lines.push(String::new());
    }
    for unread in summary.unread.iter().take(3) {
        let (workload, why) = (&unread.workload, &unread.why);
        lines.push(paint.line(&[
            (RED, format!("{workload} cannot be read: ")),
            (PLAIN, why.clone()),
        ]));
    }
    lines
}

fn table(first: &'static str, rows: &[Row], most: usize) -> Table {
    let mut header = vec![first];
    if first == "FROM" {
        header.push("TO");
    }
    header.extend(COLUMNS);
    let mut table = Table::new(&header);
    for row in rows.iter().take(most) {
        let mut cells: Vec<Cell> = row.from.iter().map(|from| (PLAIN, from.clone())).collect();
        cells.push((PLAIN, row.to.clone()));
        cells.extend(golden(&row.golden));
        table.row(cells);
    }
    table
}

fn golden(golden: &Golden) -> Vec<Cell> {
    let millis = |of: Option<f64>| (PLAIN, of.map_or("-".to_owned(), self::millis));
    let retries = if golden.retries > 0.0 { YELLOW } else { PLAIN };
    vec![
        success(golden.success),
        (PLAIN, format!("{:.1}", golden.rate)),
        millis(golden.p50_ms),
        millis(golden.p95_ms),
        millis(golden.p99_ms),
        (PLAIN, golden.connections.to_string()),
        (retries, format!("{:.1}", golden.retries)),
    ]
}

fn success(success: Option<f64>) -> Cell {
    match success {
        None => (DIM, "-".to_owned()),
        // Rounding must not make a whole of what is not.
        Some(share) if share < 1.0 => (RED, format!("{:.2}%", (share * 100.0).min(99.99))),
        Some(_) => (GREEN, "100%".to_owned()),
    }
}

fn millis(millis: f64) -> String {
    let decimals = usize::from(millis < 100.0);
    format!("{millis:.decimals$} ms")
}

/// A line for each row, to be cut by a script.
pub fn lines(summary: &Summary) -> Vec<String> {
    let line = |kind: &str, row: &Row| {
        let from = row.from.as_ref().map(|from| format!("{from} -> "));
        let of = &row.golden;
        let millis = |of: Option<f64>| of.map_or("-".to_owned(), |of| format!("{of:.1}ms"));
        format!(
            "{kind} {}{} success={} rate={:.1}/s p50={} p95={} p99={} connections={} retries={:.1}/s",
            from.unwrap_or_default(),
            row.to,
            success(of.success).1,
            of.rate,
            millis(of.p50_ms),
            millis(of.p95_ms),
            millis(of.p99_ms),
            of.connections,
            of.retries,
        )
    };
    let services = summary.services.iter().map(|row| line("service", row));
    let edges = summary.edges.iter().map(|row| line("edge", row));
    let inbound = summary.inbound.iter().map(|row| line("inbound", row));
    let unread = summary.unread.iter();
    let unread = unread.map(|of| format!("unread {} {}: {}", of.workload, of.admin, of.why));
    services.chain(edges).chain(inbound).chain(unread).collect()
}

#[cfg(test)]
mod tests {
    use super::super::golden::Unread;
    use super::*;

    fn summary(rows: usize) -> Summary {
        let row = |number: usize, from: Option<&str>| Row {
            from: from.map(str::to_owned),
            to: format!("shop/web-{number}:80"),
            golden: Golden {
                rate: 12.0,
                success: Some(0.99999),
                p50_ms: Some(1.25),
                p99_ms: Some(250.0),
                ..Golden::default()
            },
        };
        Summary {
            services: (0..rows).map(|number| row(number, None)).collect(),
            edges: (0..rows)
                .map(|number| row(number, Some("ns/shop/sa/a")))
                .collect(),
            inbound: vec![row(1, None)],
            unread: vec![Unread {
                workload: "web-9".to_owned(),
                admin: "127.0.0.1:1".to_owned(),
                why: "gone".to_owned(),
            }],
            proxies: 3,
        }
    }

    #[test]
    fn it_fits_and_says_what_it_leaves_out() {
        let paint = Paint {
            color: false,
            width: 90,
        };
        for (rows, height) in [(0, 24), (3, 24), (100, 24), (100, 50)] {
            let lines = screen(&summary(rows), Duration::from_secs(1), paint, height);
            assert!(
                lines.len() < height,
                "{rows} {height}: {}",
                lines.join("\n")
            );
            assert!(lines.iter().all(|line| line.chars().count() <= 90));
            assert_eq!(rows > 20, lines.iter().any(|line| line.contains("more")));
            assert!(
                lines
                    .iter()
                    .any(|line| line.contains("web-9 cannot be read: gone"))
            );
        }
    }

    #[test]
    fn nearly_all_is_not_all() {
        let lines = lines(&summary(1));
        assert_eq!(
            lines[1],
            "edge ns/shop/sa/a -> shop/web-0:80 success=99.99% rate=12.0/s p50=1.2ms p95=- p99=250.0ms connections=0 retries=0.0/s"
        );
        assert_eq!(lines[3], "unread web-9 127.0.0.1:1: gone");
    }
}
