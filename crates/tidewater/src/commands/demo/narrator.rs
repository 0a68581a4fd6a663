//! What the tour says: short lines on standard output, a moving bar where there is a terminal to move on.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};

/// Where a line's second part begins, so that names stand in one column and numbers in the next.
const NAME_WIDTH: usize = 14;

/// Speaks to standard output.
pub(super) struct Narrator {
    bold: bool,
    chapter: std::cell::Cell<u32>,
}

impl Narrator {
    /// In bold only where somebody looks at it.
    pub(super) fn new() -> Narrator {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Narrator { bold: io::stdout().is_terminal() && !plain, chapter: std::cell::Cell::new(0) }
    }

    /// A heading without a number.
    pub(super) fn title(&self, text: &str) -> io::Result<()> {
        let (on, off) = if self.bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("\n{on}{text}{off}"))
    }

    /// The next chapter's heading.
    pub(super) fn chapter(&self, text: &str) -> io::Result<()> {
        self.chapter.set(self.chapter.get() + 1);
        self.title(&format!("{}. {text}", self.chapter.get()))
    }

    /// A line of the chapter.
    pub(super) fn line(&self, text: &str) -> io::Result<()> {
        self.say(&format!("   {text}"))
    }

    /// A line that says something of a named thing.
    pub(super) fn entry(&self, name: &str, text: &str) -> io::Result<()> {
        self.line(format!("{name:<NAME_WIDTH$}{text}").trim_end())
    }

    /// A query, as one would type it.
    pub(super) fn query(&self, text: &str) -> io::Result<()> {
        text.lines().try_for_each(|line| self.line(&format!("| {}", line.trim_end())))
    }

    /// A bar that is gone when its work is done; nothing where there is no terminal.
    pub(super) fn bar(&self, whole: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(whole), ProgressDrawTarget::stdout());
        match ProgressStyle::with_template("   {bar:40} {human_pos} of {human_len} rows") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }

    fn say(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}

/// A number with its thousands set apart: 100,000.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [0, 999, 1000, 100_000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "100,000", "1,234,567"]
        );
    }
}
