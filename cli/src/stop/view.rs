//! What `mooring stop` shows: a line for each step, and on a terminal what is under way, with a bar over many.

use std::io::{self, Write};

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mooring::sandbox::survey::Found;

use super::one::NotStopped;
use crate::{account::Step, steps};

/// All of it. What moves is on standard error, and there only where that is a terminal.
pub struct View {
    names: Vec<String>,
    moving: MultiProgress,
    bar: Option<ProgressBar>,
    under_way: Vec<Option<ProgressBar>>,
}

impl View {
    pub fn new(chosen: &[&Found]) -> Self {
        let moving = MultiProgress::new();
        let bar = (chosen.len() > 1).then(|| {
            let bar = ProgressBar::new(u64::try_from(chosen.len()).unwrap_or(u64::MAX));
            let form = ProgressStyle::with_template("{bar:40} {pos} of {len} ended, {elapsed}");
            moving.add(bar.with_style(form.unwrap_or_else(|_| ProgressStyle::default_bar())))
        });
        let names = chosen.iter().map(|one| format!("{}/{}", one.namespace, one.id));
        Self { names: names.collect(), moving, bar, under_way: vec![None; chosen.len()] }
    }

    fn name(&self, which: usize) -> &str {
        self.names.get(which).map_or("", String::as_str)
    }

    fn write(&self, line: &str, out: &mut dyn Write) -> io::Result<()> {
        self.moving.suspend(|| {
            writeln!(out, "{line}")?;
            out.flush()
        })
    }

    /// A step as it is now. One that is under way moves on the terminal; with something that it waits for it is a line
    /// everywhere.
    pub fn step(&mut self, which: usize, step: &Step, out: &mut dyn Write) -> io::Result<()> {
        let line = format!("{}: {}", self.name(which), steps::line(step));
        let moving = &self.moving;
        if step.outcome == "under_way" {
            if let Some(slot) = self.under_way.get_mut(which) {
                let bar = slot.get_or_insert_with(|| moving.add(ProgressBar::new_spinner()));
                bar.set_message(line.clone());
            }
            if step.waits_for.is_empty() {
                return Ok(());
            }
        } else if let Some(bar) = self.under_way.get_mut(which).and_then(Option::take) {
            bar.finish_and_clear();
        }
        self.write(&line, out)
    }

    /// The end of one.
    pub fn ended(
        &mut self,
        which: usize,
        result: &Result<(), NotStopped>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if let Some(bar) = self.under_way.get_mut(which).and_then(Option::take) {
            bar.finish_and_clear();
        }
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        let how = match result {
            Ok(()) => style("stopped".to_owned()).green(),
            Err(error) => style(error.to_string()).red(),
        };
        self.write(&format!("{}: {how}", self.name(which)), out)
    }

    pub fn interrupted(&self, out: &mut dyn Write) -> io::Result<()> {
        let line = "interrupted: what shims do goes on; where a shim is gone, the next stop or \"mooring gc\" goes on";
        self.write(line, out)
    }

    /// The end of all.
    pub fn all_ended(&self, well: usize, badly: usize, out: &mut dyn Write) -> io::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        match (well, badly) {
            (1, 0) | (0, 1) => Ok(()),
            (well, 0) => self.write(&format!("{well} stopped"), out),
            (well, badly) => self.write(&format!("{well} stopped, {badly} not"), out),
        }
    }

    /// Time goes by.
    pub fn tick(&self) {
        self.under_way.iter().flatten().chain(&self.bar).for_each(ProgressBar::tick);
    }
}
