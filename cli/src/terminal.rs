//! What is shown: colours, tables, a drawing that is redrawn in place. All text
//! passes `Paint`, which lets no control character of others through.

use std::io::{self, IsTerminal as _, Write as _};

pub const BOLD: &str = "1";
pub const DIM: &str = "2";
pub const RED: &str = "31";
pub const GREEN: &str = "32";
pub const YELLOW: &str = "33";
pub const CYAN: &str = "36";
pub const PLAIN: &str = "";

/// A colour and a text.
pub type Cell = (&'static str, String);

#[derive(Clone, Copy, Debug)]
pub struct Paint {
    pub color: bool,
    /// Characters of a line; the rest is cut.
    pub width: usize,
}

impl Paint {
    /// As standard output is: colours on a terminal, unless NO_COLOR says no.
    pub fn of_stdout() -> Self {
        let set = |name| std::env::var_os(name).unwrap_or_default();
        let terminal = io::stdout().is_terminal();
        Self {
            color: terminal && set("NO_COLOR").is_empty() && set("TERM") != "dumb",
            width: usize::MAX,
        }
    }

    /// One line of pieces with their colours.
    pub fn line(&self, pieces: &[Cell]) -> String {
        let mut room = self.width;
        let mut line = String::new();
        for (tone, text) in pieces {
            let text: String = text.chars().take(room).map(shown).collect();
            room -= text.chars().count();
            if self.color && !tone.is_empty() && !text.trim().is_empty() {
                line.push_str(&format!("\x1b[{tone}m{text}\x1b[0m"));
            } else {
                line.push_str(&text);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

fn shown(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

/// Columns as wide as what stands in them; what looks like a number stands to the right.
#[derive(Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub fn lines(&self, paint: Paint) -> Vec<String> {
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let wide = |text: &str| text.chars().count();
        let columns: Vec<(usize, bool)> = (0..self.header.len())
            .map(|column| {
                let header = self.header.get(column).map_or(0, |text| wide(text));
                let widest = cells(column).map(|(_, text)| wide(text)).max();
                let filled = |(_, text): &&Cell| text != "-";
                let numbers = cells(column)
                    .filter(filled)
                    .all(|(_, text)| is_number(text));
                let right = numbers && cells(column).any(|cell| filled(&cell));
                (widest.unwrap_or(0).max(header), right)
            })
            .collect();
        let line = |cells: Vec<Cell>| {
            let placed = cells.into_iter().zip(&columns);
            let pieces: Vec<Cell> = placed
                .map(|((tone, text), (width, right))| match right {
                    true => (tone, format!("{text:>width$}  ")),
                    false => (tone, format!("{text:<width$}  ")),
                })
                .collect();
            paint.line(&pieces)
        };
        let header = self.header.iter().map(|text| (DIM, (*text).to_owned()));
        let mut lines = vec![line(header.collect())];
        lines.extend(self.rows.iter().map(|row| line(row.clone())));
        lines
    }
}

fn is_number(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_digit());
    begins
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || ". %msu".contains(c))
}

/// Lines on a terminal that are drawn over.
#[derive(Debug, Default)]
pub struct Drawing {
    drawn: usize,
}

impl Drawing {
    /// Draws over what was drawn last. A taller drawing than the screen would
    /// scroll and could not be drawn over, so it is cut.
    pub fn draw(&mut self, mut lines: Vec<String>, height: usize) -> io::Result<()> {
        lines.truncate(height.saturating_sub(1));
        // Between the two marks a terminal shows nothing half drawn.
        let mut text = String::from("\x1b[?2026h");
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        text.push_str("\r\x1b[J");
        lines
            .iter()
            .for_each(|line| text.push_str(&format!("{line}\r\n")));
        text.push_str("\x1b[?2026l");
        self.drawn = lines.len();
        let mut out = io::stdout();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// Before the first and after the last drawing.
pub fn show_cursor(shown: bool) {
    let mut out = io::stdout();
    let _closed = write!(out, "\x1b[?25{}", if shown { 'h' } else { 'l' });
    let _closed = out.flush();
}

/// A time in its largest units: `3d 4h`, `12m 5s`.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {minutes}m"),
        _ if days < 14 => format!("{days}d {hours}h"),
        _ => format!("{days}d"),
    }
}

/// Writes lines to standard output; false: nobody reads them, which is no failure.
pub fn print(lines: &[String]) -> bool {
    let mut out = io::stdout().lock();
    let written = lines.iter().try_for_each(|line| writeln!(out, "{line}"));
    written.and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: Paint = Paint {
        color: false,
        width: 12,
    };

    #[test]
    fn tables_are_aligned_and_cut() {
        let mut table = Table::new(&["NAME", "RATE", "SAID"]);
        let cell = |text: &str| (RED, text.to_owned());
        table.row(vec![cell("a"), cell("12.5"), cell("x\ny\x1b[31m")]);
        table.row(vec![cell("longer"), cell("-"), cell("")]);
        let wide = Paint {
            color: false,
            width: 80,
        };
        assert_eq!(
            table.lines(wide),
            [
                "NAME    RATE  SAID",
                "a       12.5  x y [31m",
                "longer     -"
            ]
        );
        assert_eq!(table.lines(NARROW)[1], "a       12.5");
        let painted = table.lines(Paint {
            color: true,
            width: 80,
        });
        assert!(
            painted[1].starts_with("\x1b[31ma       \x1b[0m"),
            "{painted:?}"
        );
        assert_eq!(painted[1].matches("\x1b[31m").count(), 3, "{painted:?}");
    }

    #[test]
    fn spans() {
        for (seconds, text) in [
            (5, "5s"),
            (65, "1m 5s"),
            (7260, "2h 1m"),
            (90_000, "1d 1h"),
            (40 * 86_400, "40d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
